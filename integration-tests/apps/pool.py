"""A pool of the multiprocessing module, and what its processes share: a queue, a semaphore, memory of both kinds.

GET /          {"count", "client", "boot", "pid", "mem_ok", "turns"}, the last as often as the workers have worked
MEM_MB         megabytes that they share (16)
"""

import hashlib
import multiprocessing
import multiprocessing.shared_memory
import os
import threading

import common

WORKERS = 2
NUMBERS = range(16)


def begin(turns, told, named):
    """In each worker: what it does not get with a task."""
    global TURNS, TOLD, NAMED
    TURNS, TOLD, NAMED = turns, told, named


def square(number):
    with TURNS.get_lock():
        TURNS.value += 1
        NAMED.buf[0] = TURNS.value % 256
    TOLD.put(number)
    return number * number


def listen(told, heard):
    while True:
        heard.append(told.get())


class State:
    def __init__(self):
        size = common.env_int("MEM_MB", 16) << 20
        # In a file that is deleted at once.
        self.shared = multiprocessing.RawArray("c", size)
        self.shared.raw = os.urandom(size)
        self.digest = hashlib.sha256(self.shared).digest()
        # In a file that keeps its name.
        self.named = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
        self.turns = multiprocessing.Value("Q", 0)
        self.told = multiprocessing.Queue()
        self.pool = multiprocessing.Pool(WORKERS, begin, (self.turns, self.told, self.named))
        self.heard = []
        threading.Thread(target=listen, args=(self.told, self.heard), daemon=True).start()
        self.lock = threading.Lock()
        self.count = 0

    def work(self):
        """Has the pool do a round; the round's number, and whether all is as it must be."""
        with self.lock:
            self.count += 1
            squares = self.pool.map(square, NUMBERS, chunksize=1)
            turns = self.count * len(NUMBERS)
            return self.count, (
                squares == [number * number for number in NUMBERS]
                and self.turns.value == turns
                and self.named.buf[0] == turns % 256
                and len(self.heard) <= turns
                and hashlib.sha256(self.shared).digest() == self.digest
            )


class Handler(common.Handler):
    def do_GET(self):
        count, good = STATE.work()
        self.answer({
            "count": count, "client": self.client(), "boot": common.BOOT, "pid": os.getpid(),
            "mem_ok": good, "turns": STATE.turns.value,
        })


# Forks before the server has threads.
STATE = State()
common.serve(Handler)
