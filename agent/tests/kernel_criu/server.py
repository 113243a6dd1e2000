"""A small function with everything that is awkward to dump: a thread, children that share a listening socket,
an open file, an unlinked file, shared and private memory, and output through a pipe."""

import mmap
import os
import socket
import struct
import sys
import threading
import time

CHILDREN = int(sys.argv[1])
# Descriptors from outside of the sandbox's mounts cannot be dumped: only the output pipe may stay.
os.closerange(3, 256)
null = os.open("/dev/null", os.O_RDWR)
os.dup2(null, 0)
os.dup2(null, 2)
os.close(null)

kept = open("/tmp/kept.txt", "w+")
kept.write("kept-0")
kept.flush()
gone = open("/tmp/gone.txt", "w+")
gone.write("gone-data")
gone.flush()
os.unlink("/tmp/gone.txt")

shared = mmap.mmap(-1, 4096)
private = bytearray(b"private-bytes" * 1000)
ticks = 0


def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.01)


def answer():
    number = struct.unpack_from("<I", shared, 0)[0] + 1
    struct.pack_into("<I", shared, 0, number)
    kept.seek(0)
    gone.seek(0)
    before = ticks
    deadline = time.monotonic() + 5
    while ticks == before and time.monotonic() < deadline:
        time.sleep(0.005)
    alive = "ticking" if ticks != before else "stuck"
    print("request", number, flush=True)
    return f"number={number} kept={kept.read()} gone={gone.read()} private={len(private)} thread={alive}"


def serve(listener):
    threading.Thread(target=tick, daemon=True).start()
    while True:
        connection, _ = listener.accept()
        with connection:
            if request := connection.recv(4096):
                body = (str(time.monotonic()) if b"/clock" in request else answer()).encode()
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", 8080))
listener.listen(16)
for _ in range(CHILDREN):
    if os.fork() == 0:
        serve(listener)
print("ready", flush=True)
if CHILDREN:
    while True:
        os.wait()
serve(listener)
