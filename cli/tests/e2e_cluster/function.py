"""The function of the end-to-end tests: an HTTP server whose path says what to do. Keeps state, makes trouble."""
import ctypes
import hashlib
import http.server
import json
import os
import queue
import socket
import struct
import sys
import threading
import time
import urllib.parse

state = {"count": 0}


def count(query):
    state["count"] += 1
    return {"count": state["count"], "pid": os.getpid()}


def crash(query):
    print("about to crash", flush=True)
    os._exit(3)


def exhaust(query):
    """Takes memory until somebody ends it."""
    hoard = []
    while True:
        hoard.append(bytearray(b"\x55" * (1 << 20)))


def ballast(query):
    """Holds memory that no other sandbox has."""
    state["ballast"] = os.urandom(int(query["mib"]) << 20)
    return {"bytes": len(state["ballast"])}


def weigh(query):
    """What that memory is."""
    return {"sum": hashlib.sha256(state["ballast"]).hexdigest()}


def who(query):
    """As whom it runs, and whether that is enough to read what is root's alone."""
    return {"users": list(os.getresuid() + os.getresgid()), "reads": os.access("/etc/shadow", os.R_OK)}


def sleep(query):
    print("asleep", flush=True)
    time.sleep(float(query["seconds"]))
    return {}


def connect(query):
    """An established TCP connection, both ends here."""
    listener = socket.create_server(("127.0.0.1", 0))
    there = socket.create_connection(listener.getsockname())
    state["connection"] = (listener, there, listener.accept()[0])
    return {}


def disconnect(query):
    for end in state.pop("connection"):
        end.close()
    return {}


class Child:
    """A forked process that counts what it is asked; it has a child of its own, which does too."""

    def __init__(self, depth):
        self.ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            # The request under way is the parent's.
            for fd in range(3, 256):
                if fd != theirs.fileno():
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            below = Child(depth - 1) if depth else None
            asked = 0
            while theirs.recv(1):
                asked += 1
                answers = [[os.getpid(), asked]] + (below.ask() if below else [])
                theirs.send(json.dumps(answers).encode())
            os._exit(0)
        theirs.close()

    def ask(self):
        self.ours.send(b"?")
        return json.loads(self.ours.recv(4096))


class Thread:
    """A thread that counts what it is asked."""

    def __init__(self):
        self.questions, self.answers = queue.Queue(), queue.Queue()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        asked = 0
        while True:
            self.questions.get()
            asked += 1
            self.answers.put(asked)

    def ask(self):
        self.questions.put(None)
        return self.answers.get(timeout=10)


def family(query):
    """Everything that is hard to take along."""
    state["child"] = Child(depth=1)
    state["threads"] = [Thread() for _ in range(3)]
    state["kept"] = open("/tmp/kept", "w+")
    state["kept"].write("kept, ")
    state["kept"].flush()
    state["unlinked"] = open("/tmp/unlinked", "w+")
    os.unlink("/tmp/unlinked")
    state["unlinked"].write("unlinked, ")
    state["unlinked"].flush()
    state["tcp"] = socket.create_server(("127.0.0.1", 9099))
    state["unix"] = socket.socket(socket.AF_UNIX)
    state["unix"].bind("/tmp/socket")
    state["unix"].listen()
    state["pipe"] = os.pipe()
    os.write(state["pipe"][1], b"still in the pipe")
    return {}


def call(listener, connect):
    """A byte through a listening socket."""
    caller = connect()
    called, _ = listener.accept()
    caller.send(b"!")
    byte = called.recv(1)
    caller.close()
    called.close()
    return byte.decode()


def call_unix():
    caller = socket.socket(socket.AF_UNIX)
    caller.connect("/tmp/socket")
    return caller


def append(file):
    """What a file has after one more line at the place where it stood."""
    file.write("more")
    file.flush()
    return open(f"/proc/self/fd/{file.fileno()}").read()


def look(query):
    return {
        "processes": state["child"].ask(),
        "threads": [thread.ask() for thread in state["threads"]],
        "kept": append(state["kept"]),
        "unlinked": append(state["unlinked"]),
        "tcp": call(state["tcp"], lambda: socket.create_connection(("127.0.0.1", 9099))),
        "unix": call(state["unix"], call_unix),
        "path": open("/tmp/kept").read(),
        "count": state["count"],
        "pid": os.getpid(),
    }


def drain(query):
    return {"pipe": os.read(state["pipe"][0], 100).decode()}


def splinter(query):
    """Has so many mappings of one page each: every other one is read-only. Two thirds of them are written before."""
    libc, pages = ctypes.CDLL(None), int(query["mappings"])
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.mmap(None, pages * 4096, 3, 0x22, -1, 0)
    state["splinters"] = (start, [page % 251 + 1 if page % 3 else 0 for page in range(pages)])
    for page, byte in enumerate(state["splinters"][1]):
        if byte:
            ctypes.memset(start + page * 4096, byte, 64)
    refused = [libc.mprotect(start + page * 4096, 4096, 1) for page in range(0, pages, 2)]
    return {"refused": sum(map(bool, refused)), "mappings": len(open("/proc/self/maps").readlines())}


def splinters(query):
    """How many of them are not what they were."""
    start, bytes_ = state["splinters"]
    wrong = [page for page, byte in enumerate(bytes_) if ctypes.string_at(start + page * 4096, 1)[0] != byte]
    return {"wrong": len(wrong), "mappings": len(open("/proc/self/maps").readlines())}


def descriptors(query):
    """What it has open."""
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]


def shield(query):
    """A seccomp filter of its own: who asks a userfaultfd for anything is ended, or refused."""
    verdict = {"end": 0x80000000, "refuse": 0x00050001}[query["by"]]
    # Number 16 is ioctl; all of a userfaultfd's have 0xaa in the second byte of their second argument.
    steps = [(0x20, 0, 0, 0), (0x15, 0, 5, 16), (0x20, 0, 0, 24), (0x74, 0, 0, 8), (0x54, 0, 0, 0xFF), (0x15, 0, 1, 0xAA)]
    steps += [(0x06, 0, 0, verdict), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(program)))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER.
    return {"set": ctypes.CDLL(None).prctl(22, 2, filter_, 0, 0)}


ACTIONS = [count, crash, exhaust, ballast, weigh, who, sleep, connect, disconnect, family, look, drain]
ACTIONS += [splinter, splinters, descriptors, shield]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"ready": True})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urllib.parse.urlsplit(self.path)
        action = {action.__name__: action for action in ACTIONS}[address.path.strip("/")]
        self.answer(action(dict(urllib.parse.parse_qsl(address.query))))

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


if sys.argv[1:] == ["never"]:
    print("no port today", flush=True)
    time.sleep(1000)
print("function is up", flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
