"""An application with probes: HTTP on PORT, HTTPS on TLS_PORT, health checks over gRPC on GRPC_PORT.

Every path but those below gets the status that is set for it, 200 at first, or that of UNREADY, such as
"/ready=503". It says what it has answered: "/ready 503 kube-probe/1.34".

GET /set?path=/ready&status=200   sets one; for gRPC the path is "grpc", anything but 200 is NOT_SERVING
GET /count                        a number that grows
"""

import http.server
import os
import socket
import signal
import ssl
import struct
import sys
import threading
import urllib.parse

statuses = dict(pair.split("=") for pair in os.environ.get("UNREADY", "").split(",") if pair)
count = 0
lock = threading.Lock()


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
    if "WITNESS" in os.environ:
        with open(os.environ["WITNESS"], "a") as file:
            print(*words, file=file)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        url = urllib.parse.urlsplit(self.path)
        body = b""
        status = 200
        if url.path == "/set":
            query = urllib.parse.parse_qs(url.query)
            statuses[query["path"][0]] = query["status"][0]
        elif url.path == "/count":
            with lock:
                count += 1
                body = str(count).encode()
        else:
            status = int(statuses.get(url.path, 200))
            say(url.path, status, self.headers.get("User-Agent"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    context = None

    def get_request(self):
        client, address = super().get_request()
        if self.context:
            # The handshake is the thread's: who does not shake hands keeps nobody else waiting.
            client = self.context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return client, address

    def handle_error(self, *_):
        # A client that has gone, such as a TCP probe.
        pass


def serve(port, certificate=None):
    server = Server(("::", port), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = "/tmp/certificate.pem"
        with open(path, "w") as file:
            file.write(certificate)
        context.load_cert_chain(path)
        server.context = context
    threading.Thread(target=server.serve_forever, daemon=True).start()


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def grpc_connection(client):
    """HTTP/2 as far as one call needs it: whatever is asked, the answer is about health."""
    data = b""

    def take(length):
        nonlocal data
        while len(data) < length:
            more = client.recv(4096)
            if not more:
                raise ConnectionError
            data += more
        taken, data = data[:length], data[length:]
        return taken

    take(24)
    client.sendall(frame(4, 0, 0))
    while True:
        head = take(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        payload = take(length)
        if kind == 4 and not flags & 1:
            client.sendall(frame(4, 1, 0))
        elif kind == 6 and not flags & 1:
            client.sendall(frame(6, 1, 0, payload))
        elif kind in (0, 1) and flags & 1:
            serving = statuses.get("grpc", "200") == "200"
            say("grpc", "SERVING" if serving else "NOT_SERVING")
            message = bytes([0, 0, 0, 0, 2, 8, 1 if serving else 2])
            client.sendall(
                frame(1, 4, stream, b"\x88" + literal(b"content-type", b"application/grpc"))
                + frame(0, 0, stream, message)
                + frame(1, 5, stream, literal(b"grpc-status", b"0"))
            )


def grpc_client(client):
    try:
        grpc_connection(client)
    except OSError:
        pass
    finally:
        client.close()


def serve_grpc(port):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def accept():
        while True:
            client, _ = server.accept()
            threading.Thread(target=grpc_client, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


if "GRPC_PORT" in os.environ:
    serve_grpc(int(os.environ["GRPC_PORT"]))
if "TLS_PORT" in os.environ:
    serve(int(os.environ["TLS_PORT"]), os.environ["CERTIFICATE"])
if "PORT" in os.environ:
    serve(int(os.environ["PORT"]))
say("listening")

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.pause()
