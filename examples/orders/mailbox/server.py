"""A mail catcher for development: it takes messages and shows them. Its route is `none`: customers' names stand in it, and
no dev link may ever show them."""

import collections
import html
import http.server
import json
import os
import threading

MESSAGE_BYTES_MAX = 16 * 1024
MESSAGES = collections.deque(maxlen=200)
LOCK = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    server_version = "mailbox"
    sys_version = ""
    timeout = 30

    def do_GET(self):
        with LOCK:
            messages = list(MESSAGES)
        if self.path == "/messages":
            return self.answer(200, "application/json", json.dumps({"messages": messages}).encode())
        rows = "".join(f"<li><b>{html.escape(m['to'])}</b> {html.escape(m['subject'])}</li>" for m in messages)
        self.answer(200, "text/html; charset=utf-8", f"<!doctype html><title>Mailbox</title><ol>{rows}</ol>".encode())

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MESSAGE_BYTES_MAX:
            return self.answer(413, "text/plain", b"a message has at most 16384 bytes\n")
        try:
            said = json.loads(self.rfile.read(int(length)))
            message = {"to": str(said["to"])[:100], "subject": str(said["subject"])[:200]}
        except (ValueError, KeyError, TypeError):
            return self.answer(422, "text/plain", b"a message has `to` and `subject`\n")
        with LOCK:
            MESSAGES.append(message)
        self.answer(202, "text/plain", b"taken\n")

    def answer(self, status, kind, content):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    http.server.ThreadingHTTPServer.daemon_threads = True
    http.server.ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])), Handler).serve_forever()
