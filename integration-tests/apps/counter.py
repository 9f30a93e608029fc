"""A counter over HTTP beside a given amount of memory whose content is known.

MEM_MB         megabytes to hold, filled with random bytes at the start (0)
TOUCH_MB       how many of them each GET / reads: the working set (0)
LOG_EVERY_MS   a numbered line "tick N" to standard output that often (0: none)
LOG_REQUESTS   1: a numbered line "request N CLIENT" for each GET / (1)

GET /          {"count", "client", "boot", "pid", "mem_ok"}; mem_ok is about one page and the working set
GET /mem       {"mem_ok", "bytes"}: all of the memory is compared with its checksums
GET /log?lines=N&bytes=M   writes N numbered lines of M bytes to standard output, answers before they are out
POST /echo     {"bytes", "sha256"} of the body
"""

import hashlib
import os
import random
import threading
import time
import urllib.parse
import zlib

import common

CHUNK = 1 << 20
PAGE = 4096


class Memory:
    """Chunks of random bytes that differ from each other, and their checksums."""

    def __init__(self, megabytes):
        block = random.Random(os.urandom(16)).randbytes(CHUNK)
        self.data = bytearray(megabytes * CHUNK)
        self.sums = []
        for index in range(megabytes):
            start = index * CHUNK
            self.data[start:start + CHUNK] = block
            for page in range(start, start + CHUNK, PAGE):
                self.data[page:page + 8] = page.to_bytes(8, "big")
            self.sums.append(zlib.crc32(memoryview(self.data)[start:start + CHUNK]))
        self.next = 0

    def chunk_ok(self, index):
        start = index * CHUNK
        return zlib.crc32(memoryview(self.data)[start:start + CHUNK]) == self.sums[index]

    def first_ok(self, megabytes):
        return all(self.chunk_ok(index) for index in range(min(megabytes, len(self.sums))))

    def all_ok(self):
        return self.first_ok(len(self.sums))

    def one_page_ok(self):
        """Another page each time, so that a wake that reads little is measured as one."""
        if not self.data:
            return True
        page = self.next
        self.next = (page + 997 * PAGE) % len(self.data)
        return int.from_bytes(self.data[page:page + 8], "big") == page


MEMORY = Memory(common.env_int("MEM_MB", 0))
TOUCH_MB = common.env_int("TOUCH_MB", 0)
LOG_REQUESTS = common.env_int("LOG_REQUESTS", 1)
count = 0
lines = 0
count_lock = threading.Lock()
lines_lock = threading.Lock()


def tick(every):
    number = 0
    while True:
        time.sleep(every)
        number += 1
        common.log(f"tick {number}")


def flood(amount, size):
    global lines
    for _ in range(amount):
        with lines_lock:
            lines += 1
            common.log(f"line {lines} ".ljust(size - 1, "."))


class Handler(common.Handler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/":
            self.count()
        elif url.path == "/mem":
            self.answer({"mem_ok": MEMORY.all_ok(), "bytes": len(MEMORY.data)})
        elif url.path == "/log":
            query = urllib.parse.parse_qs(url.query)
            amount, size = (int(query[name][0]) for name in ("lines", "bytes"))
            threading.Thread(target=flood, args=(amount, size), daemon=True).start()
            self.answer({"lines": amount})
        else:
            self.answer({"error": "no such page"}, 404)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})

    def count(self):
        global count
        with count_lock:
            count += 1
            number = count
            mem_ok = MEMORY.one_page_ok() and MEMORY.first_ok(TOUCH_MB)
        if LOG_REQUESTS:
            common.log(f"request {number} {self.client()}")
        self.answer({
            "count": number,
            "client": self.client(),
            "boot": common.BOOT,
            "pid": os.getpid(),
            "mem_ok": mem_ok,
        })


every_ms = common.env_int("LOG_EVERY_MS", 0)
if every_ms:
    threading.Thread(target=tick, args=(every_ms / 1000,), daemon=True).start()
common.serve(Handler)
