"""The orders over HTTP: JSON under /api, changes as server-sent events, a confirmation to the mailbox."""

import http.client
import http.server
import json
import os
import pathlib
import queue
import re
import sys
import threading
import urllib.parse

import orders as shop

BODY_BYTES_MAX = 4096
KEEP_ALIVE_SECONDS = 15
MAIL = queue.Queue(100)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "orders"
    sys_version = ""
    timeout = 60

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/healthz":
            return self.answer(200, {"status": "ok"})
        if path == "/api/orders":
            catalog = [{"item": item, "title": title, "price_cents": price} for item, (title, price) in shop.CATALOG.items()]
            return self.answer(200, {"orders": self.server.orders.list(), "catalog": catalog, "states": list(shop.STATES)})
        if path == "/api/stream":
            return self.stream()
        self.answer(404, {"error": "there is no such resource"})

    def do_POST(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/api/orders":
            return self.place()
        if match := re.fullmatch(r"/api/orders/([0-9]{1,9})/advance", path):
            return self.advance(int(match[1]))
        # Not below /api: the hook reaches it, no link does.
        if path == "/internal/flush":
            self.server.orders.save()
            return self.answer(200, {"saved": len(self.server.orders.list())})
        self.close_connection = True
        self.answer(404, {"error": "there is no such resource"})

    def place(self):
        body = self.body()
        if body is None:
            return
        try:
            order = self.server.orders.place(*shop.validate(body))
        except shop.Invalid as invalid:
            return self.answer(422, {"error": "the order is not valid", "fields": invalid.fields})
        except shop.Full:
            return self.answer(409, {"error": "the board is full: ship some orders first"})
        try:
            MAIL.put_nowait(order)
        except queue.Full:
            print("the mailbox does not keep up, one confirmation is lost", file=sys.stderr, flush=True)
        self.answer(201, order, {"Location": f"/api/orders/{order['id']}"})

    def advance(self, identity):
        if int(self.headers.get("Content-Length") or 0):
            self.close_connection = True
        try:
            self.answer(200, self.server.orders.advance(identity))
        except shop.Unknown:
            self.answer(404, {"error": f"there is no order {identity}"})

    def body(self):
        """The JSON body, or None after an answer that says what is wrong with it."""

        def refuse(status, error):
            # What was not read would be taken for the next request.
            self.close_connection = True
            self.answer(status, {"error": error})

        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not length.isdecimal():
            return refuse(411, "send a Content-Length")
        if int(length) > BODY_BYTES_MAX:
            return refuse(413, f"an order has at most {BODY_BYTES_MAX} bytes")
        # A form of another site cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            return refuse(415, "send application/json")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return refuse(400, "the body is not JSON")

    def stream(self):
        waiting = self.server.orders.listen()
        if waiting is None:
            return self.answer(503, {"error": "too many listen already"})
        self.close_connection = True
        try:
            self.send_response(200)
            for name, value in (("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("Connection", "close")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"retry: 1000\n\n")
            while not getattr(waiting, "overflowed", False):
                try:
                    event = waiting.get(timeout=KEEP_ALIVE_SECONDS)
                    self.wfile.write(f"event: order\ndata: {json.dumps(event)}\n\n".encode())
                except queue.Empty:
                    self.wfile.write(b": still here\n\n")
        except OSError:
            pass
        finally:
            self.server.orders.leave(waiting)

    def answer(self, status, value, headers=None):
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})}.items():
            self.send_header(name, text)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        if self.path != "/api/healthz":
            super().log_message(*arguments)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, orders):
        super().__init__(address, Handler)
        self.orders = orders


def deliver_mail(host, port):
    """Confirmations go out one by one; an order never waits for them."""
    while True:
        order = MAIL.get()
        text = json.dumps({"to": order["customer"], "subject": f"Order {order['id']}: {order['quantity']} x {order['title']}"})
        try:
            mailbox = http.client.HTTPConnection(host, port, timeout=5)
            mailbox.request("POST", "/messages", text.encode(), {"Content-Type": "application/json"})
            mailbox.getresponse().read()
            mailbox.close()
        except (OSError, http.client.HTTPException) as error:
            print(f"a confirmation was not delivered: {error}", file=sys.stderr, flush=True)


def main():
    data = pathlib.Path(os.environ.get("ENVFORGE_DATA_DIR", "."))
    if mailbox := os.environ.get("ENVFORGE_SERVICE_MAILBOX_PORT"):
        address = (os.environ["ENVFORGE_SERVICE_MAILBOX_HOST"], int(mailbox))
        threading.Thread(target=deliver_mail, args=address, daemon=True).start()
    address = (os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]))
    Server(address, shop.Orders(data / "orders.json")).serve_forever()


if __name__ == "__main__":
    main()
