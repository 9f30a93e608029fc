"""Says the terminal's size at the start and at each change, and repeats each line that it reads."""

import os
import signal
import sys

import common


def say(line):
    os.write(1, (line + "\n").encode())


def size(*_):
    if os.isatty(0):
        columns, rows = os.get_terminal_size(0)
        say(f"size {columns}x{rows}")
    else:
        say("no terminal")


common.end_on_term()
signal.signal(signal.SIGWINCH, size)
size()
for line in sys.stdin:
    say("got " + line.rstrip("\n"))
say("end of input")
