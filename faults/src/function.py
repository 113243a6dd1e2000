"""The function of the fault matrix: counts its requests, and knows what its memory must look like.

What it answers names a life (drawn at its first request, so no two clones have one) and a count. A life's count never comes twice unless two
processes go on from one image, or one goes on from an older one. `sound` is whether all that it keeps is as it left it.
"""
import hashlib
import http.server
import json
import os
import time
import urllib.parse

PAGE = 4096
SHARED = hashlib.shake_128(b"the same in every sandbox").digest(512 * PAGE)
SHARED_SUM = hashlib.blake2b(SHARED).digest()
PAGES = 512
state = {"life": None, "count": 0, "own": bytearray(), "sum": hashlib.blake2b(b"").digest()}


def sound():
    return hashlib.blake2b(state["own"]).digest() == state["sum"] and hashlib.blake2b(SHARED).digest() == SHARED_SUM


def count(query):
    was_sound = sound()
    if state["life"] is None:
        state["life"] = os.urandom(8).hex()
        state["own"] = bytearray(os.urandom(PAGES * PAGE))
    state["count"] += 1
    at = state["count"] * 7 % PAGES * PAGE
    state["own"][at:at + PAGE] = hashlib.shake_128(f"{state['life']} {state['count']}".encode()).digest(PAGE)
    state["sum"] = hashlib.blake2b(state["own"]).digest()
    if "seconds" in query:
        time.sleep(float(query["seconds"]))
    return {"life": state["life"], "count": state["count"], "sound": was_sound}


def hoard(query):
    """Memory that no other sandbox has, as much as is asked for; more than there may be ends it."""
    state["hoard"] = [os.urandom(1 << 20) for _ in range(int(query["mib"]))]
    return count(query)


def litter(query):
    """Writes files until there is no room, and lives on."""
    written = 0
    try:
        with open("/tmp/litter", "wb") as file:
            while written < int(query["mib"]):
                file.write(bytes(1 << 20))
                written += 1
    except OSError:
        pass
    os.unlink("/tmp/litter")
    return count(query)


ACTIONS = {"count": count, "hoard": hoard, "litter": litter}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"hooks": ["restored"]} if self.path == "/medes/hooks" else {"ready": True})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urllib.parse.urlsplit(self.path)
        action = ACTIONS.get(address.path.strip("/"), lambda query: {})
        self.answer(action(dict(urllib.parse.parse_qsl(address.query))))

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
