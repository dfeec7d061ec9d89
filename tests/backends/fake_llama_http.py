"""The part of the fake llama-server that serves: ``fake_llama_http.py BEHAVIOUR ARGUMENTS...``.

Reads requests itself: ``http.server`` takes longer to import than all the rest to run.
"""

import json
import os
import signal
import socketserver
import sys
import threading
from itertools import pairwise

LOAD = """# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 5
"""


class Handler(socketserver.StreamRequestHandler):
    behaviour = "good"
    key = ""

    def handle(self) -> None:
        """One request a connection."""
        request = self.rfile.readline().decode().split()
        if not request:
            return  # somebody who only looked whether the port is taken
        method, self.path, _ = request
        self.headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        if method == "GET":
            self.get()
        else:
            self.post()

    def get(self) -> None:
        if self.path == "/health":
            self.reply(503 if self.behaviour == "never-ready" else 200, "{}")
        elif self.path == "/metrics" and self.behaviour != "no-metrics":
            self.reply(200, LOAD)
        else:
            self.reply(501, "{}")

    def post(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.key and self.headers.get("authorization") != f"Bearer {self.key}":
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
        self.wfile.write(
            f"HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def main(behaviour: str, argv: list[str]) -> None:
    given = dict(pairwise(argv))
    Handler.behaviour = behaviour
    Handler.key = os.environ.get("LLAMA_API_KEY", "")
    print(f"the key is {Handler.key}", flush=True)
    server = Server((given["--host"], int(given["--port"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
