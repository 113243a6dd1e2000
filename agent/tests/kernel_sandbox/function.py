"""A function for tests: runs the Python code in the body of a POST and answers with its `result`."""
import http.server
import os
import sys
import traceback


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, "ready")

    def do_POST(self):
        code = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
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


print("function starts", sys.argv[1:], flush=True)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
