"""The part of the fake llama-server that serves: ``fake_llama_http.py BEHAVIOUR ARGUMENTS...``."""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

LOAD = """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 5
"""


class Handler(BaseHTTPRequestHandler):
    behaviour = "good"
    key = ""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(503 if self.behaviour == "never-ready" else 200, "{}")
        elif self.path == "/metrics" and self.behaviour != "no-metrics":
            self.reply(200, LOAD)
        else:
            self.reply(501, "{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != f"Bearer {self.key}":
            self.reply(401, "{}")
        elif self.behaviour == "dies-computing":
            os.kill(os.getpid(), signal.SIGILL)
        elif self.behaviour == "cannot-compute":
            self.reply(500, json.dumps({"error": {"message": "the template is broken"}}))
        elif self.behaviour == "computes-nothing":
            self.reply(200, json.dumps({"choices": [], "usage": {"completion_tokens": 0}}))
        elif self.path == "/v1/embeddings":
            vector = [0.0, 0.0] if self.behaviour == "zero-vector" else [0.1, -0.2]
            self.reply(200, json.dumps({"data": [{"embedding": vector}]}))
        elif self.path == "/v1/rerank":
            self.reply(200, json.dumps({"results": [{"relevance_score": -1.5}]}))
        else:
            self.reply(200, json.dumps({"choices": [{}], "usage": {"completion_tokens": 1}}))

    def reply(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # named by the base class
        pass


def main(behaviour: str, argv: list[str]) -> None:
    given = dict(pairwise(argv))
    Handler.behaviour = behaviour
    Handler.key = os.environ["LLAMA_API_KEY"]
    print(f"the key is {Handler.key}", flush=True)
    server = ThreadingHTTPServer((given["--host"], int(given["--port"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
