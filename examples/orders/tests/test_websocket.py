"""The WebSocket against a client that does what it should not."""

import email.message
import pathlib
import socket
import struct
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "web"))
import websocket  # noqa: E402

MASK = b"\x11\x22\x33\x44"


def masked(opcode, payload, final=True, flags=0):
    head = bytes([(0x80 if final else 0) | flags | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([0x80 | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", len(payload))
    return head + MASK + bytes(byte ^ MASK[index % 4] for index, byte in enumerate(payload))


def headers(**fields):
    message = email.message.Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


class Handshake(unittest.TestCase):
    GOOD = {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket", "Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}

    def test_the_example_of_the_standard(self):
        self.assertEqual(websocket.accept_key(headers(**self.GOOD)), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    def test_other_requests_are_refused_with_the_status_that_says_why(self):
        for change, status in (({"Upgrade": "h2c"}, 426), ({"Connection": "close"}, 426), ({"Sec_WebSocket_Version": "8"}, 426), ({"Sec_WebSocket_Key": "short"}, 400), ({"Sec_WebSocket_Key": "!!!"}, 400)):
            with self.subTest(change), self.assertRaises(websocket.HandshakeRefused) as caught:
                websocket.accept_key(headers(**{**self.GOOD, **change}))
            self.assertEqual(caught.exception.status, status)


class Frames(unittest.TestCase):
    def setUp(self):
        ours, self.client = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(self.client.close)
        self.client.settimeout(10)
        self.connection = websocket.Connection(ours, ours.recv, idle_seconds=5)

    def close_code(self):
        first, length = self.client.recv(2)
        self.assertEqual(first, 0x88)
        return struct.unpack("!H", self.client.recv(length)[:2])[0]

    def refused(self, data, code):
        self.client.sendall(data)
        with self.assertRaises(websocket.Closed) as caught:
            self.connection.receive()
        self.assertEqual(caught.exception.code, code)
        self.assertEqual(self.close_code(), code)

    def test_lengths_around_each_encoding(self):
        for length in (0, 1, 125, 126, 127, 65_535, 65_536):
            self.client.sendall(masked(websocket.BINARY, b"x" * length))
            self.assertEqual(self.connection.receive(), (websocket.BINARY, b"x" * length))

    def test_fragments_are_joined_around_a_ping(self):
        whole = "grüße".encode()
        # Cut within a character: only the whole message must be UTF-8.
        self.client.sendall(masked(websocket.TEXT, whole[:3], final=False) + masked(websocket.PING, b"hi") + masked(websocket.CONTINUATION, whole[3:]))
        self.assertEqual(self.connection.receive(), (websocket.TEXT, "grüße"))
        self.assertEqual(self.client.recv(4), b"\x8a\x02hi")

    def test_what_a_client_must_not_send(self):
        for data, code in (
            (websocket.frame(websocket.TEXT, b"unmasked"), 1002),
            (masked(websocket.TEXT, b"x", flags=0x40), 1002),
            (masked(0x3, b"x"), 1002),
            (masked(websocket.PING, b"x", final=False), 1002),
            (masked(websocket.PING, b"x" * 126), 1002),
            (masked(websocket.CONTINUATION, b"x"), 1002),
            (masked(websocket.TEXT, b"a", final=False) + masked(websocket.TEXT, b"b"), 1002),
            (masked(websocket.TEXT, b"\xff"), 1007),
            (masked(websocket.BINARY, b"x" * (websocket.MESSAGE_BYTES_MAX + 1)), 1009),
            (masked(websocket.TEXT, b"", final=False) + masked(websocket.CONTINUATION, b"", final=False) * 64, 1009),
            (masked(websocket.CLOSE, b"\x03"), 1002),
            (masked(websocket.CLOSE, struct.pack("!H", 1005)), 1002),
        ):
            with self.subTest(data[:12]):
                self.setUp()
                self.refused(data, code)

    def test_a_close_is_answered_with_its_code_and_nothing_follows(self):
        self.client.sendall(masked(websocket.CLOSE, struct.pack("!H", 1001) + b"bye"))
        with self.assertRaises(websocket.Closed) as caught:
            self.connection.receive()
        self.assertEqual((caught.exception.code, caught.exception.reason), (1001, "bye"))
        self.assertEqual(self.close_code(), 1001)
        with self.assertRaises(websocket.Closed):
            self.connection.send_text("too late")

    def test_a_silent_client_is_pinged_and_then_given_up(self):
        ours, client = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(client.close)
        silent = websocket.Connection(ours, ours.recv, idle_seconds=0.05)
        with self.assertRaises(websocket.Closed) as caught:
            silent.receive()
        self.assertEqual(caught.exception.code, websocket.GOING_AWAY)
        self.assertEqual(client.recv(2), b"\x89\x00")

    def test_a_client_that_hangs_up(self):
        self.client.sendall(b"\x81")
        self.client.shutdown(socket.SHUT_WR)
        with self.assertRaises(websocket.Closed) as caught:
            self.connection.receive()
        self.assertEqual(caught.exception.code, 1006)


if __name__ == "__main__":
    unittest.main()
