"""Three processes with threads that hold one of each kind of descriptor; GET /check looks whether all is as it was left.

GET /          {"count", "client", "boot", "pid"}
GET /check     {"ok", "checks": {name: true or what is wrong}}
"""

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time

import common

DIRECTORY = os.environ.get("DATA_DIR", "/var/lib/multi")
CLOCK_MONOTONIC = 1
# Larger than a page, small enough for a pipe.
IN_FLIGHT = bytes(range(256)) * 40

libc = ctypes.CDLL(None, use_errno=True)


def timerfd(interval):
    """A periodic timer; `interval` in seconds."""
    fd = libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    seconds, fraction = int(interval), int(interval % 1 * 1e9)
    spec = struct.pack("4l", seconds, fraction, seconds, fraction)
    if fd < 0 or libc.timerfd_settime(fd, 0, spec, None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return fd


def worker(channel, shared, index):
    """A child: answers each number with its double, and counts in the shared page from a second thread."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def beat():
        while True:
            time.sleep(0.05)
            value = struct.unpack_from("Q", shared, index * 8)[0]
            struct.pack_into("Q", shared, index * 8, value + 1)

    threading.Thread(target=beat, daemon=True).start()
    while True:
        message = channel.recv(8)
        if not message:
            os._exit(0)
        channel.sendall(struct.pack("Q", struct.unpack("Q", message)[0] * 2))


class State:
    def __init__(self):
        os.makedirs(DIRECTORY, exist_ok=True)
        self.lock = threading.Lock()
        self.rounds = 0

        self.shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.channels, self.children = [], []
        for index in range(2):
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                worker(theirs, self.shared, index)
            theirs.close()
            self.channels.append(ours)
            self.children.append(pid)
        self.beats = [0, 0]

        self.log = open(os.path.join(DIRECTORY, "log"), "w+b", buffering=0)
        fcntl.flock(self.log, fcntl.LOCK_EX)
        self.written = b""

        path = os.path.join(DIRECTORY, "deleted")
        self.deleted = open(path, "w+b", buffering=0)
        os.unlink(path)
        self.deleted.write(IN_FLIGHT)

        self.queue_in, self.queue_out = socket.socketpair()
        self.queue_in.sendall(IN_FLIGHT)
        self.pipe_out, self.pipe_in = os.pipe()
        os.write(self.pipe_in, IN_FLIGHT)

        self.event = os.eventfd(7, os.EFD_NONBLOCK)
        self.timer = timerfd(0.05)
        self.epoll = select.epoll()
        for fd in (self.event, self.timer, self.pipe_out):
            self.epoll.register(fd, select.EPOLLIN)

        self.ticks = 0
        threading.Thread(target=self.tick, daemon=True).start()

    def tick(self):
        while True:
            time.sleep(0.05)
            self.ticks += 1

    def check(self):
        with self.lock:
            self.rounds += 1
            results = {}
            for name in (
                "children", "shared_memory", "file", "file_lock", "deleted_file",
                "socket_pair", "pipe", "epoll", "timerfd", "eventfd", "thread",
            ):
                try:
                    getattr(self, "check_" + name)()
                    results[name] = True
                except Exception as error:
                    results[name] = f"{type(error).__name__}: {error}"
            return results

    def check_children(self):
        for channel, pid in zip(self.channels, self.children):
            os.kill(pid, 0)
            channel.sendall(struct.pack("Q", self.rounds))
            expect(struct.unpack("Q", channel.recv(8))[0], self.rounds * 2)

    def check_shared_memory(self):
        for index in range(2):
            deadline = time.monotonic() + 5
            before = self.beats[index]
            while struct.unpack_from("Q", self.shared, index * 8)[0] <= before:
                if time.monotonic() > deadline:
                    raise AssertionError(f"child {index} no longer counts")
                time.sleep(0.01)
            self.beats[index] = struct.unpack_from("Q", self.shared, index * 8)[0]

    def check_file(self):
        record = f"round {self.rounds}\n".encode()
        expect(self.log.tell(), len(self.written))
        self.log.write(record)
        self.written += record
        with open(self.log.name, "rb") as again:
            expect(again.read(), self.written)

    def check_file_lock(self):
        with open(self.log.name, "rb") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        raise AssertionError("the lock is gone")

    def check_deleted_file(self):
        expect(os.fstat(self.deleted.fileno()).st_nlink, 0)
        expect(os.pread(self.deleted.fileno(), len(IN_FLIGHT) + 1, 0), IN_FLIGHT)

    def check_socket_pair(self):
        expect(read_exactly(self.queue_out.recv), IN_FLIGHT)
        self.queue_in.sendall(IN_FLIGHT)

    def check_pipe(self):
        expect(read_exactly(lambda size: os.read(self.pipe_out, size)), IN_FLIGHT)
        os.write(self.pipe_in, IN_FLIGHT)

    def check_epoll(self):
        ready = dict(self.epoll.poll(5))
        expect(self.event in ready and self.pipe_out in ready, True)

    def check_timerfd(self):
        select.select([self.timer], [], [], 5)
        expect(struct.unpack("Q", os.read(self.timer, 8))[0] > 0, True)

    def check_eventfd(self):
        expect(os.eventfd_read(self.event), 7)
        os.eventfd_write(self.event, 7)

    def check_thread(self):
        before = self.ticks
        deadline = time.monotonic() + 5
        while self.ticks == before:
            if time.monotonic() > deadline:
                raise AssertionError("the thread no longer counts")
            time.sleep(0.01)


def read_exactly(read):
    data = b""
    while len(data) < len(IN_FLIGHT):
        data += read(len(IN_FLIGHT) - len(data))
    return data


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"found {found!r:.100}, wanted {wanted!r:.100}")


# Forks before the server has threads.
STATE = State()
count = 0


class Handler(common.Handler):
    def do_GET(self):
        global count
        if self.path == "/check":
            checks = STATE.check()
            self.answer({"ok": all(value is True for value in checks.values()), "checks": checks})
            return
        with STATE.lock:
            count += 1
        self.answer({
            "count": count, "client": self.client(), "boot": common.BOOT, "pid": os.getpid(),
        })


common.serve(Handler)
