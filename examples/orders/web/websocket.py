"""The server's side of one WebSocket (RFC 6455), over a blocking socket.

Owns the handshake, framing, limits, ping and close. Not here: what messages mean.
"""

import base64
import binascii
import hashlib
import socket
import struct
import threading

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MESSAGE_BYTES_MAX = 64 * 1024
FRAGMENTS_MAX = 64
IDLE_SECONDS = 20

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, INVALID_TEXT, TOO_BIG = 1000, 1001, 1002, 1003, 1007, 1009


class HandshakeRefused(Exception):
    """The request is no WebSocket handshake that we speak. `status` is the HTTP answer."""

    def __init__(self, status, reason, headers=()):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


class Closed(Exception):
    """The connection is over, by either side or by a broken line."""

    def __init__(self, code, reason=""):
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


def accept_key(headers):
    """Checks a handshake's headers; the value of `Sec-WebSocket-Accept`."""
    tokens = {token.strip().lower() for token in ",".join(headers.get_all("Connection", [])).split(",")}
    if "upgrade" not in tokens or headers.get("Upgrade", "").strip().lower() != "websocket":
        raise HandshakeRefused(426, "this address speaks WebSocket", [("Upgrade", "websocket")])
    if headers.get("Sec-WebSocket-Version", "").strip() != "13":
        raise HandshakeRefused(426, "only version 13 is spoken", [("Sec-WebSocket-Version", "13")])
    keys = headers.get_all("Sec-WebSocket-Key", [])
    try:
        nonce = base64.b64decode(keys[0].strip(), validate=True) if len(keys) == 1 else b""
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:
        raise HandshakeRefused(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return base64.b64encode(hashlib.sha1((keys[0].strip() + GUID).encode()).digest()).decode()


def frame(opcode, payload, final=True):
    """One unmasked frame, as servers send them."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        head += bytes([len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([127]) + struct.pack("!Q", len(payload))
    return head + payload


class Connection:
    """After the handshake. One thread receives; any thread may send."""

    def __init__(self, connection, reader, idle_seconds=IDLE_SECONDS):
        self._socket, self._reader = connection, reader
        self._sending = threading.Lock()
        self._close_sent = False
        self._ping_open = False
        # A peer that is silent for so long gets a ping; one that stays silent is gone. Also bounds each write.
        self._socket.settimeout(idle_seconds)

    def send_text(self, text):
        self._send(TEXT, text.encode())

    def receive(self):
        """The next whole message as (opcode, payload). Answers pings and the closing handshake; raises Closed at the end."""
        opcode, parts, size = None, [], 0
        while True:
            final, kind, payload = self._frame(MESSAGE_BYTES_MAX - size)
            if kind == PING:
                self._send(PONG, payload)
            elif kind == PONG:
                pass
            elif kind == CLOSE:
                self._closed_by_peer(payload)
            else:
                if (kind == CONTINUATION) != (opcode is not None):
                    self.fail(PROTOCOL_ERROR, "a fragment is out of order")
                opcode = kind if opcode is None else opcode
                parts.append(payload)
                size += len(payload)
                if len(parts) > FRAGMENTS_MAX:
                    self.fail(TOO_BIG, "too many fragments")
                if final:
                    message = b"".join(parts)
                    if opcode == TEXT:
                        try:
                            return opcode, message.decode()
                        except UnicodeDecodeError:
                            self.fail(INVALID_TEXT, "text must be UTF-8")
                    return opcode, message

    def close(self, code=NORMAL, reason=""):
        """Begins the closing handshake; the receiving thread sees its end."""
        try:
            self._send(CLOSE, struct.pack("!H", code) + reason.encode()[:123])
        except Closed:
            pass

    def fail(self, code, reason):
        self.close(code, reason)
        raise Closed(code, reason)

    def _closed_by_peer(self, payload):
        code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
        valid = 1000 <= code <= 4999 and code not in (1004, 1005, 1006, 1015) and not 1016 <= code <= 2999
        if len(payload) == 1 or (len(payload) >= 2 and not valid):
            self.fail(PROTOCOL_ERROR, "the close code is not one")
        try:
            reason = payload[2:].decode()
        except UnicodeDecodeError:
            self.fail(INVALID_TEXT, "a close reason must be UTF-8")
        if not self._close_sent:
            self.close(NORMAL if code == 1005 else code)
        raise Closed(code, reason)

    def _frame(self, room):
        first, second = self._read(2, at_boundary=True)
        final, opcode, masked, length = first & 0x80 != 0, first & 0x0F, second & 0x80 != 0, second & 0x7F
        if first & 0x70:
            self.fail(PROTOCOL_ERROR, "no extension was agreed on")
        if not masked:
            self.fail(PROTOCOL_ERROR, "frames of a client are masked")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            self.fail(PROTOCOL_ERROR, "the opcode is not known")
        if opcode >= CLOSE and (length > 125 or not final):
            self.fail(PROTOCOL_ERROR, "control frames are short and whole")
        if length == 126:
            (length,) = struct.unpack("!H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._read(8))
        if opcode < CLOSE and length > room:
            self.fail(TOO_BIG, f"a message has at most {MESSAGE_BYTES_MAX} bytes")
        mask = self._read(4)
        payload = self._read(length)
        # XOR as one big integer: byte by byte would be slow for long messages.
        pattern = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(length, "big")
        return final, opcode, payload

    def _read(self, count, at_boundary=False):
        data = b""
        while len(data) < count:
            try:
                chunk = self._reader(count - len(data))
            except socket.timeout:
                if not at_boundary or data or self._ping_open:
                    self.fail(GOING_AWAY, "no answer to a ping")
                self._ping_open = True
                self._send(PING, b"")
                continue
            except (OSError, ValueError):
                raise Closed(1006, "the line broke") from None
            if not chunk:
                raise Closed(1006, "the line was cut")
            data += chunk
            self._ping_open = False
        return data

    def _send(self, opcode, payload):
        with self._sending:
            if self._close_sent:
                # Nothing follows a close frame.
                raise Closed(1006, "closing already")
            self._close_sent = opcode == CLOSE
            try:
                self._socket.sendall(frame(opcode, payload))
            except OSError:
                raise Closed(1006, "the line broke") from None
