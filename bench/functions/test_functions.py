"""Runs every function as a plain process, without Medes, and holds it to its contract.

Start it with the functions' own interpreter: `$MEDES_PYTHON test_functions.py`. At the end it prints
what each function costs; those numbers are printed only, no test depends on them.
"""

import http.client
import json
import os
import pathlib
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest

HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("MEDES_PYTHON", sys.executable)
VARIABLES = {"MEDES_PYTHON": PYTHON, "MEDES_VENV": sys.prefix, **os.environ}
READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 10
ANSWER_KEYS = {"function", "seed", "served", "n", "result"}
NAMES = [
    "vanilla",
    "linalg",
    "image",
    "video",
    "mapreduce",
    "html",
    "auth",
    "feature",
    "model-serve",
    "model-train",
    # The four kinds.
    "lookup",
    "weights",
    "thumbnail",
    "forest",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def expand(text):
    return re.sub(r"\$\{(\w+)\}", lambda name: VARIABLES[name[1]], text)


def spec(name):
    return tomllib.loads((HERE / name / "function.toml").read_text())


class Process:
    """A function that is ready to answer. Leaving the `with` block ends it and checks how it ended."""

    def __init__(self, name, seed=None):
        self.name, self.spec, self.port = name, spec(name), free_port()
        self.tmp = tempfile.TemporaryDirectory()
        # No PATH, no HOME: a sandbox has neither for sure.
        env = {
            **self.spec.get("env", {}),
            "PORT": str(self.port),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": self.tmp.name,
        }
        if seed is not None:
            env["MEDES_SEED"] = str(seed)
        started = time.perf_counter()
        self.child = subprocess.Popen(
            [expand(word) for word in self.spec["command"]],
            cwd=HERE / name / self.spec["dir"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.wait_until_ready(started + READY_SECONDS_MAX)
        self.init_ms = (time.perf_counter() - started) * 1000

    def wait_until_ready(self, deadline):
        # The line comes before the port opens; asking every few milliseconds covers the gap.
        line = self.log_line(deadline)
        if "ready after" not in line:
            self.child.kill()
            rest = self.child.communicate()[0]
            raise AssertionError(f"{self.name} did not become ready: {line}{rest}")
        while time.perf_counter() < deadline:
            try:
                status, _ = self.request("GET", "/ready")
                assert status == 200, status
                return
            except ConnectionRefusedError:
                time.sleep(0.005)
        raise AssertionError(f"{self.name} never opened its port")

    def log_line(self, deadline):
        ready, _, _ = select.select([self.child.stdout], [], [], max(0, deadline - time.perf_counter()))
        return self.child.stdout.readline() if ready else ""

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            assert response.getheader("Connection") == "close"
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ask(self, n):
        started = time.perf_counter()
        status, answer = self.request("POST", "/", json.dumps({"n": n}))
        self.last_ms = (time.perf_counter() - started) * 1000
        assert status == 200, answer
        return answer

    def memory_mb(self, key="VmRSS"):
        for line in pathlib.Path(f"/proc/{self.child.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) / 1024
        raise AssertionError(f"no {key}")

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self.child.terminate()
        try:
            self.child.communicate(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.communicate()
        left = os.listdir(self.tmp.name)
        self.tmp.cleanup()
        if error is None:
            assert self.child.returncode == 0, f"SIGTERM ended {self.name} with {self.child.returncode}"
            assert not left, f"{self.name} left files behind: {left}"


def why_skipped(name):
    """The reason why this machine cannot run a function; None if it can."""
    if name != "model-serve":
        return None
    python = expand(spec(name)["command"][0])
    try:
        found = subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0
    except OSError:
        found = False
    return None if found else f"{python} has no torch (Debian: python3-torch)"


class Contract(unittest.TestCase):
    """The same test for each function; the tests are made from the list of names below."""

    rows = []

    def check(self, name):
        reason = why_skipped(name)
        if reason:
            print(f"SKIPPED {name}: {reason}")
            self.skipTest(reason)
        self.assertEqual(spec(name)["name"], name)
        with Process(name, seed=1) as one:
            rss_before, anon_before = one.memory_mb(), one.memory_mb("RssAnon")
            first = one.ask(3)
            first_ms = one.last_ms
            self.assertEqual(set(first), ANSWER_KEYS)
            self.assertEqual((first["function"], first["seed"], first["n"]), (name, 1, 3))
            other = one.ask(4)
            again = one.ask(3)
            self.assertEqual(again["result"], first["result"], "the same n gives the same result")
            self.assertNotEqual(other["result"], first["result"], "another n gives another result")
            self.assertEqual([a["served"] for a in (first, other, again)], [1, 2, 3])
            times = []
            for n in range(5, 10):
                one.ask(n)
                times.append(one.last_ms)
            self.rows.append(
                (name, one.init_ms, first_ms, sorted(times)[2], rss_before, one.memory_mb(), one.memory_mb("VmHWM"),
                 anon_before, one.memory_mb("RssAnon"))
            )  # fmt: skip
        with Process(name, seed=1) as twin, Process(name) as stranger:
            self.assertEqual(twin.ask(3)["result"], first["result"], "the same seed gives the same result")
            self.assertNotEqual(stranger.ask(3)["result"], first["result"], "another seed gives another result")

    @classmethod
    def tearDownClass(cls):
        head = ("function", "init ms", "first ms", "warm ms", "RSS ready", "RSS used", "peak", "anon ready", "anon used")
        print("\n" + " | ".join(head))
        for row in cls.rows:
            print(" | ".join([row[0]] + [f"{value:.0f}" for value in row[1:]]))


for function in NAMES:
    setattr(Contract, f"test_{function.replace('-', '_')}", lambda self, name=function: self.check(name))


class Trouble(unittest.TestCase):
    """What the shared runtime does with requests it cannot answer."""

    def test_bad_requests_are_refused_and_the_next_good_one_is_answered(self):
        with Process("vanilla", seed=7) as function:
            for body in ["", "{", "[]", "{}", '{"n": "3"}', '{"n": 1.5}', '{"n": true}', '{"n": -1}', '{"n": 2147483648}']:
                status, answer = function.request("POST", "/", body)
                self.assertEqual(status, 400, body)
                self.assertIn("error", answer)
            # Deep nesting exhausts the parser's stack, not the process.
            self.assertEqual(function.request("POST", "/", "[" * 60_000)[0], 400)
            self.assertEqual(function.request("POST", "/", b"\xff\xfe{}")[0], 400)
            self.assertEqual(function.request("POST", "/elsewhere", '{"n": 1}')[0], 404)
            self.assertEqual(function.request("GET", "/")[0], 404)
            self.assertEqual(function.request("POST", "/", "x" * (64 * 1024 + 1))[0], 413)
            self.assertEqual(function.request("POST", "/", headers={"Content-Length": "9" * 5000})[0], 413)
            self.assertEqual(function.request("POST", "/", headers={"Content-Length": "-1"})[0], 400)
            self.assertEqual(function.ask(1)["served"], 1)

    def test_a_clone_draws_anew_and_calls_what_was_registered(self):
        program = (
            "import sys; sys.path.insert(0, 'runtime'); import medes_runtime, random, ssl, uuid\n"
            "calls = []\n"
            "medes_runtime.before_snapshot(lambda: (random.seed(1), calls.append('before')))\n"
            "medes_runtime.after_restore(lambda: calls.append('registered first'))\n"
            "medes_runtime.after_restore(lambda: calls.append('registered last'))\n"
            "answer = lambda state, n: [random.random(), medes_runtime.generation, calls]\n"
            "medes_runtime.serve('drawing', lambda seed: 0, answer)\n"
        )
        drawn = []
        for _ in range(2):
            port = free_port()
            with subprocess.Popen(
                [PYTHON, "-c", program], cwd=HERE, env={"PORT": str(port)}, stdout=subprocess.PIPE, text=True
            ) as child:
                try:
                    self.assertIn("ready after", child.stdout.readline())
                    ask = lambda *what: self.ask(port, *what)
                    self.assertEqual(ask("GET", "/medes/hooks")[1], {"hooks": ["snapshot", "restored"]})
                    self.assertEqual(ask("POST", "/medes/snapshot", "")[0], 200)
                    told = '{"sandbox": "sb-1-7", "generation": 4294967303}'
                    self.assertEqual(ask("POST", "/medes/restored", told)[1], {"generation": 4294967303})
                    number, generation, calls = ask("POST", "/", '{"n": 1}')[1]["result"]
                    self.assertEqual(generation, 4294967303)
                    self.assertEqual(calls, ["before", "registered last", "registered first"])
                    drawn.append(number)
                finally:
                    child.terminate()
        self.assertNotEqual(drawn[0], drawn[1], "both were seeded alike before")

    def test_a_client_that_goes_away_does_not_end_the_function(self):
        with Process("vanilla", seed=7) as function:
            with socket.create_connection(("127.0.0.1", function.port), timeout=10) as client:
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            self.assertEqual(function.ask(1)["served"], 1)

    def test_a_failing_function_answers_500_and_lives(self):
        program = (
            "import sys; sys.path.insert(0, 'runtime'); import medes_runtime\n"
            "medes_runtime.serve('failing', lambda seed: 0, lambda state, n: 1 // n)\n"
        )
        port = free_port()
        with subprocess.Popen(
            [PYTHON, "-c", program], cwd=HERE, env={"PORT": str(port)}, stdout=subprocess.PIPE, text=True
        ) as child:
            try:
                self.assertIn("ready after", child.stdout.readline())
                answers = [self.ask(port, "POST", "/", json.dumps({"n": n})) for n in (0, 1)]
            finally:
                child.kill()
        self.assertEqual(answers[0], (500, {"error": "ZeroDivisionError: integer division or modulo by zero"}))
        self.assertEqual((answers[1][0], answers[1][1]["served"]), (200, 1))

    @staticmethod
    def ask(port, method, path, body=None):
        for _ in range(1000):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                connection.request(method, path, body)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except ConnectionRefusedError:
                time.sleep(0.005)
        raise AssertionError("the port never opened")


if __name__ == "__main__":
    unittest.main(verbosity=1)
