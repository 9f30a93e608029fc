import hashlib, os, socket, sys, threading, time

block = bytearray()
pattern = hashlib.sha256(b"podmotion").digest() * 32768  # 1 MiB
for n in range(int(sys.argv[1])):
    block += n.to_bytes(4, "little") + pattern[4:]
count = 0
deleted = open("/tmp/deleted", "w+")
deleted.write("still here")
deleted.flush()
os.unlink("/tmp/deleted")
deleted.seek(0)
writable = open("/written", "w")


def whole():
    for n in range(len(block) >> 20):
        at = n << 20
        if block[at:at + 4] != n.to_bytes(4, "little") or block[at + 4:at + (1 << 20)] != pattern[4:]:
            return "wrong at %d" % n
    return "whole"


def answer(words):
    global count
    if words[0] == "count":
        count += 1
        return str(count)
    if words[0] == "whole":
        return whole()
    if words[0] == "touch":
        at = (int(words[1]) << 20) + 8192
        return block[at:at + 32].hex()
    if words[0] == "deleted":
        return os.pread(deleted.fileno(), 100, 0).decode()
    if words[0] == "double":
        second.sendall(words[1].encode())
        return second.recv(20).decode()
    if words[0] == "pid":
        return str(os.getpid())
    if words[0] == "write":
        data = (words[2] * int(words[1])).encode()
        written = 0
        while written < len(data):
            written += os.write(1, data[written:])
        return "written"
    if words[0] == "mounts":
        return " ".join(sorted(
            ":".join(line.split()[3:6] + [line.split()[6].split(":")[0]])
            for line in open("/proc/self/mountinfo")))
    if words[0] == "tmpfs":
        return " ".join(sorted(listed()))
    if words[0] == "cgroups":
        return " ".join(sorted(line.strip() for line in open("/proc/self/cgroup")))
    if words[0] == "uring":
        import ctypes
        params = (ctypes.c_char * 120)()
        return str(ctypes.CDLL(None, use_errno=True).syscall(425, 8, params))
    return "?"


def listed():
    """Everything on each tmpfs, with all that can be told about it."""
    for line in open("/proc/self/mountinfo"):
        fields = line.split(" - ")
        if not fields[1].startswith("tmpfs ") or fields[0].split()[3] != "/":
            continue
        point = fields[0].split()[4]
        device = os.stat(point).st_dev
        yield point + ":" + fields[1].split()[2]
        for folder, folders, files in os.walk(point):
            folders[:] = [f for f in folders
                          if os.lstat(os.path.join(folder, f)).st_dev == device]
            for path in [folder] + [os.path.join(folder, f) for f in files]:
                s = os.lstat(path)
                link = os.readlink(path) if os.path.islink(path) else ""
                yield ":".join(map(str, (path, oct(s.st_mode), s.st_uid, s.st_gid,
                                         s.st_rdev, s.st_mtime_ns, link)))


def serve(client):
    with client:
        for line in client.makefile("r"):
            client.sendall((answer(line.split()) + "\n").encode())


def double(pipe):
    """A second process, which is not the container's init: answers numbers with twice the number."""
    while number := pipe.recv(20):
        pipe.sendall(str(2 * int(number)).encode())
    os._exit(0)


second, pipe = socket.socketpair()
if "fork" in sys.argv:
    if os.fork() == 0:
        second.close()
        double(pipe)
    pipe.close()

listener = socket.create_server(("0.0.0.0", 8000), backlog=64)
while True:
    client, _ = listener.accept()
    threading.Thread(target=serve, args=(client,), daemon=True).start()
