"""A function for tests: runs the Python code in the body of a POST and answers with its `result`.

With $HOOKS it knows what a clone is, and keeps what it is told in `builtins.told`.
"""
import builtins
import http.server
import os
import sys
import traceback


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hooks = os.environ.get("HOOKS")
        self.answer(200, hooks if hooks and self.path == "/medes/hooks" else "ready")

    def do_POST(self):
        code = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.path.startswith("/medes/"):
            builtins.told[self.path] = code
            return self.answer(int(os.environ.get("HOOK_STATUS", "200")), "")
        names = {"headers": dict(self.headers)}
        try:
            exec(code, names)
            self.answer(200, str(names.get("result")))
        except Exception:
            self.answer(500, traceback.format_exc())

    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


builtins.told = {}
print("function starts", sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
