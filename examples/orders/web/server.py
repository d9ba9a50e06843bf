"""Serves the board: pages, assets, and the WebSocket that tells every open page what happens.

Orders live in the API; this process follows its event stream and passes each event on.
"""

import http.client
import http.server
import json
import os
import pathlib
import queue
import threading
import time
import urllib.parse

import websocket

HERE = pathlib.Path(__file__).resolve().parent
SOCKETS_MAX = 200
WAITING_MAX = 64
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


def load_files():
    """Everything that may be served, by path: no request ever becomes a file name."""
    files = {}
    for folder, prefix in (("pages", "/"), ("assets", "/assets/")):
        for path in sorted((HERE / folder).iterdir()):
            if path.suffix in TYPES:
                files[prefix + path.name] = (TYPES[path.suffix], path.read_bytes())
    kind, page = files.pop("/index.html")
    shop = os.environ.get("SHOP_NAME", "Northwind Roasters")
    escaped = shop.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    files["/"] = (kind, page.replace(b"{{shop}}", escaped.encode()))
    return files


class Room:
    """The open sockets. Each has a bounded queue and a thread that empties it: a slow page holds nobody up."""

    def __init__(self):
        self._members, self._lock = {}, threading.Lock()

    def enter(self, connection):
        waiting = queue.Queue(WAITING_MAX)
        with self._lock:
            if len(self._members) >= SOCKETS_MAX:
                return None
            self._members[connection] = waiting
        threading.Thread(target=self._deliver, args=(connection, waiting), daemon=True).start()
        self.tell({"type": "presence", "pages": self.count()})
        return waiting

    def leave(self, connection):
        with self._lock:
            waiting = self._members.pop(connection, None)
        if waiting is not None:
            try:
                waiting.put_nowait(None)
            except queue.Full:
                pass
            self.tell({"type": "presence", "pages": self.count()})

    def count(self):
        with self._lock:
            return len(self._members)

    def tell(self, message):
        text = json.dumps(message)
        with self._lock:
            members = list(self._members.items())
        for connection, waiting in members:
            try:
                waiting.put_nowait(text)
            except queue.Full:
                # It reloads the whole board when it comes back.
                connection.close(websocket.GOING_AWAY, "too slow")
                self.leave(connection)

    @staticmethod
    def _deliver(connection, waiting):
        while (text := waiting.get()) is not None:
            try:
                connection.send_text(text)
            except websocket.Closed:
                return


ROOM = Room()
FILES = load_files()


def follow_orders(host, port):
    """Passes the API's event stream on, for as long as this process lives."""
    while True:
        try:
            api = http.client.HTTPConnection(host, port, timeout=60)
            api.request("GET", "/api/stream", headers={"Accept": "text/event-stream"})
            answer = api.getresponse()
            while line := answer.readline(64 * 1024):
                if line.startswith(b"data: "):
                    ROOM.tell(json.loads(line[6:]))
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.5)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "board"
    sys_version = ""
    timeout = 60

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/live":
            return self.live()
        if path == "/healthz":
            return self.answer(200, "text/plain; charset=utf-8", b"ok\n")
        if path not in FILES:
            return self.answer(404, "text/plain; charset=utf-8", b"There is no such page.\n")
        kind, content = FILES[path]
        self.answer(200, kind, content, {"Cache-Control": "no-cache"})

    do_HEAD = do_GET

    def answer(self, status, kind, content, headers=None):
        self.send_response(status)
        for name, value in {**SECURITY, **(headers or {}), "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def live(self):
        self.close_connection = True
        try:
            if not self.is_same_origin():
                raise websocket.HandshakeRefused(403, "another site may not open this socket")
            accept = websocket.accept_key(self.headers)
            if ROOM.count() >= SOCKETS_MAX:
                raise websocket.HandshakeRefused(503, "too many pages are open")
        except websocket.HandshakeRefused as refused:
            headers = {**dict(refused.headers), "Connection": "close"}
            return self.answer(refused.status, "text/plain; charset=utf-8", f"{refused.reason}\n".encode(), headers)
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        connection = websocket.Connection(self.connection, self.rfile.read1)
        waiting = ROOM.enter(connection)
        try:
            if waiting is None:
                connection.fail(1013, "too many pages are open")
            while True:
                self.echo(connection, *connection.receive())
        except websocket.Closed:
            pass
        finally:
            ROOM.leave(connection)

    @staticmethod
    def echo(connection, opcode, message):
        if opcode != websocket.TEXT:
            connection.fail(websocket.UNSUPPORTED, "only text is spoken here")
        try:
            said = json.loads(message)
            text = said["text"] if said["type"] == "echo" and isinstance(said["text"], str) else None
            identity = said.get("id")
        except (ValueError, KeyError, TypeError, AttributeError):
            text = None
        if text is None:
            return connection.send_text(json.dumps({"type": "error", "reason": 'send {"type": "echo", "text": "..."}'}))
        connection.send_text(json.dumps({"type": "echo", "text": text, "id": identity}))

    def is_same_origin(self):
        """Browsers name the page's origin; its host must be the one that was asked."""
        origin = self.headers.get("Origin")
        if origin is None:
            return True
        asked = {self.headers.get("Host"), os.environ.get("ENVFORGE_PUBLIC_HOST")} - {None}
        return urllib.parse.urlsplit(origin).netloc in asked

    def log_message(self, *arguments):
        if self.path != "/healthz":
            super().log_message(*arguments)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    if api := os.environ.get("ENVFORGE_SERVICE_API_PORT"):
        address = (os.environ["ENVFORGE_SERVICE_API_HOST"], int(api))
        threading.Thread(target=follow_orders, args=address, daemon=True).start()
    Server((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
