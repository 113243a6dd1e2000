"""What every benchmark function shares: a seed, and a small HTTP server on 127.0.0.1:$PORT.

A function calls `serve(name, init, handle)` as its last line. By then its imports are done; `init(seed)`
makes its data; only then does the port open, so an open port means a function that is ready.

    GET /ready           200
    POST /  {"n": int}   200 {"function", "seed", "served", "n", "result"}

`result` depends on the seed and `n` alone, so an answer given before a sandbox was deduplicated can be
compared with one given after it was restored. `n` chooses the input of the request and hardly changes its
cost. `served` counts the answers of this process: it goes on counting only if the memory survived.

Medes may make new sandboxes of this process as it is when it has become ready (a clone). It asks first, and tells each
clone before its first request:

    GET  /medes/hooks      200 {"hooks": ["snapshot", "restored"]}
    POST /medes/snapshot   200, the memory is about to be copied
    POST /medes/restored   200 {"sandbox": "sb-1-2", "generation": 4294967298}: this is a clone now

All that must not be the same in two sandboxes is drawn anew then; a function adds its own with `before_snapshot` and
`after_restore`.
"""

import hashlib
import http.server
import json
import os
import signal
import socketserver
import sys
import time

BODY_BYTES_MAX = 64 * 1024
N_MAX = 2**31 - 1
# A client that stops in the middle of a request must not block the only thread for good.
CONNECTION_SECONDS_MAX = 10


# Called with nothing, in order of registration; and in the opposite order.
_before_snapshot = []
_after_restore = []
# The number of this sandbox, as far as this process was told.
generation = int(os.environ.get("MEDES_GENERATION", "0"))


def before_snapshot(function):
    """Has `function` called before this process is copied. A decorator."""
    _before_snapshot.append(function)
    return function


def after_restore(function):
    """Has `function` called in each clone before its first request. A decorator."""
    _after_restore.insert(0, function)
    return function


def draw_anew(body):
    """In a clone: forgets what its brothers know as well."""
    global generation
    told = json.loads(body) if body else {}
    generation = int(told.get("generation", generation))
    anew = {
        "random": lambda random: random.seed(os.urandom(32)),
        # OpenSSL's generators take this in and start again from it.
        "ssl": lambda ssl: ssl.RAND_add(os.urandom(32), 32.0),
        # What a time-based uuid is counted on from.
        "uuid": lambda uuid: setattr(uuid, "_last_timestamp", None),
        "numpy": lambda numpy: numpy.random.seed(int.from_bytes(os.urandom(4), "little")),
        "torch": lambda torch: torch.manual_seed(int.from_bytes(os.urandom(7), "little")),
    }
    # What was not imported has no state.
    for name, draw in anew.items():
        if name in sys.modules:
            draw(sys.modules[name])
    for function in _after_restore:
        function()


def hook(path, body):
    """What Medes asks or tells; `None` if this is none of it."""
    if path == "/medes/snapshot":
        for function in _before_snapshot:
            function()
        return {}
    if path == "/medes/restored":
        draw_anew(body)
        return {"generation": generation}
    return None


class BadRequest(Exception):
    """The client's mistake, with the HTTP status that says so."""

    def __init__(self, status, problem):
        super().__init__(problem)
        self.status = status


def digest(*parts):
    """A short hash that stands for a large result. Accepts bytes and str."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else bytes(part)
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def seed_of_this_process():
    """$MEDES_SEED if given; else random, so that no two sandboxes work on the same data.

    48 bits: a JSON reader that keeps numbers as doubles still has it exactly.
    """
    text = os.environ.get("MEDES_SEED")
    if text is None:
        return int.from_bytes(os.urandom(6), "little")
    seed = int(text)
    if not 0 <= seed < 2**48:
        raise ValueError("MEDES_SEED is not in 0..2^48")
    return seed


class Function:
    """One function: its state, and how many requests it has answered."""

    def __init__(self, name, init, handle):
        self.name = name
        self.seed = seed_of_this_process()
        self.handle = handle
        self.served = 0
        self.state = init(self.seed)

    def answer(self, body):
        n = parse(body)
        result = self.handle(self.state, n)
        self.served += 1
        return {"function": self.name, "seed": self.seed, "served": self.served, "n": n, "result": result}


def parse(body):
    """The `n` of a request body."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"body is not JSON: {error}") from error
    n = request.get("n") if isinstance(request, dict) else None
    # bool is an int to Python, but not to a reader of the contract.
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n <= N_MAX:
        raise BadRequest(400, f'body is not {{"n": integer in 0..{N_MAX}}}')
    return n


class Server(socketserver.TCPServer):
    """One connection after the other, on the main thread.

    Not http.server.HTTPServer: that one asks a name server for its own host name, and a sandbox has none.
    """

    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address, function):
        self.function = function
        super().__init__(address, Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request. The connection is closed after it, so an idle sandbox holds no open connection."""

    protocol_version = "HTTP/1.1"
    # Buffered: an answer sent in two pieces would wait for the caller's delayed acknowledgement (40 ms).
    wbufsize = -1
    timeout = CONNECTION_SECONDS_MAX

    def do_GET(self):
        path = self.path.partition("?")[0]
        answers = {"/ready": {"ready": True}, "/medes/hooks": {"hooks": ["snapshot", "restored"]}}
        self.reply(200 if path in answers else 404, answers.get(path, {"error": "no such path"}))

    def do_POST(self):
        started = time.perf_counter()
        try:
            path, body = self.path.partition("?")[0], self.body()
            told = hook(path, body)
            if told is not None:
                return self.reply(200, told)
            if path != "/":
                raise BadRequest(404, "no such path")
            status, answer = 200, self.server.function.answer(body)
        except BadRequest as error:
            status, answer = error.status, {"error": str(error)}
        except Exception as error:  # whatever went wrong inside: the caller gets an answer, the server lives
            status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
        self.reply(status, answer)
        ms = (time.perf_counter() - started) * 1000
        print(f"{self.server.function.name}: {status} in {ms:.1f} ms, {self.server.function.served} served", flush=True)

    def body(self):
        length = self.headers.get("Content-Length")
        if length is None:
            raise BadRequest(411, "no Content-Length")
        if not (length.isascii() and length.isdigit()):
            raise BadRequest(400, "Content-Length is not a number")
        # Compare the digits first: a number of a million digits is not worth turning into an integer.
        if len(length) > 9 or int(length) > BODY_BYTES_MAX:
            raise BadRequest(413, f"body is larger than {BODY_BYTES_MAX} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise BadRequest(400, "body ends early")
        return body

    def reply(self, status, answer):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Silent: do_POST writes its own line, and readiness checks are not worth one."""


def stop(_signal, _frame):
    """SIGTERM. Needed because the first process of a pid namespace ignores it by default."""
    sys.exit(0)


def serve(name, init, handle):
    """Never returns, except by SIGTERM."""
    signal.signal(signal.SIGTERM, stop)
    port = int(os.environ["PORT"])
    started = time.perf_counter()
    function = Function(name, init, handle)
    print(f"{name}: ready after {(time.perf_counter() - started) * 1000:.0f} ms of init", flush=True)
    with Server(("127.0.0.1", port), function) as server:
        # Not serve_forever(): it wakes up twice a second, and an idle sandbox should be idle.
        while True:
            server.handle_request()
