"""A git server of a test's own over HTTPS with basic authentication: git http-backend behind Python's server.

Arguments: certificate, key, folder of bare repositories, user, file that holds the password, file for a line per request, file
that says where /moved/... leads. Prints its port.
"""

import base64
import http.server
import os
import ssl
import subprocess
import sys

CERTIFICATE, KEY, ROOT, USER, PASSWORD, REQUESTS, MOVED = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def told(self, given):
        with open(REQUESTS, "a") as file:
            file.write(f"{self.command} {self.path} {given}\n")

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def serve(self):
        given = self.headers.get("Authorization", "")
        if self.path.startswith("/moved/"):
            self.told("with a credential" if given else "without")
            with open(MOVED) as file:
                target = file.read().strip()
            return self.answer(302, [("Location", target + self.path[len("/moved"):])])
        with open(PASSWORD) as file:
            expected = f"{USER}:{file.read()}"
        if given != "Basic " + base64.b64encode(expected.encode()).decode():
            self.told("with a wrong credential" if given else "without")
            return self.answer(401, [("WWW-Authenticate", 'Basic realm="git"')])
        self.told("with the credential")
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_PROJECT_ROOT": ROOT,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "REMOTE_USER": USER,
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": self.headers.get("Content-Length", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        length = int(self.headers.get("Content-Length") or 0)
        done = subprocess.run(
            ["git", "http-backend"], input=self.rfile.read(length), env=environment, stdout=subprocess.PIPE
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        status, headers = 200, []
        for line in head.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "Status":
                status = int(value.split()[0])
            elif name:
                headers.append((name, value))
        self.answer(status, headers, body)

    do_GET = serve
    do_POST = serve


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(CERTIFICATE, KEY)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
