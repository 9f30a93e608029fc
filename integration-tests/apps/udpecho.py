"""Answers each UDP datagram with "COUNT CLIENT:PORT " and the datagram itself."""

import socket

import common

common.end_on_term()
family, address = common.bind_address()
server = socket.socket(family, socket.SOCK_DGRAM)
if family == socket.AF_INET6:
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
server.bind((address, common.env_int("PORT", 8080)))
common.log(f"listening on {server.getsockname()[1]}")
count = 0
while True:
    data, peer = server.recvfrom(65535)
    count += 1
    host = peer[0].removeprefix("::ffff:")
    common.log(f"datagram {count} {host}:{peer[1]}")
    server.sendto(f"{count} {host}:{peer[1]} ".encode() + data, peer)
