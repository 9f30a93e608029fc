"""What the Python test servers share: dual-stack listening, JSON answers, an end on SIGTERM."""

import http.server
import json
import os
import signal
import socket
import sys
import threading

BOOT = os.urandom(8).hex()
_stdout = threading.Lock()


def log(line):
    """Writes one whole line to standard output at once."""
    data = (line + "\n").encode()
    with _stdout:
        while data:
            data = data[os.write(1, data):]


def env_int(name, default):
    return int(os.environ.get(name, default))


def bind_address():
    """(family, address) to listen on."""
    address = os.environ.get("BIND", "::")
    return (socket.AF_INET6 if ":" in address else socket.AF_INET), address


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, handler, port):
        self.address_family, address = bind_address()
        super().__init__((address, port), handler)

    def server_bind(self):
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not http.server's own: that one looks the name of the address up.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "test", self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One segment per answer.
    wbufsize = -1
    disable_nagle_algorithm = True

    def client(self):
        """The peer as ADDRESS:PORT, IPv4 in its own form, IPv6 in brackets."""
        address, port = self.client_address[:2]
        if address.startswith("::ffff:"):
            address = address[len("::ffff:"):]
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def answer(self, value, status=200):
        body = (json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def end_on_term():
    """The first process of a container ignores SIGTERM unless it asks for it."""

    def end(*_):
        os.write(1, b"terminated\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, end)


def serve(handler):
    end_on_term()
    server = Server(handler, env_int("PORT", 8080))
    log(f"listening on {server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)
