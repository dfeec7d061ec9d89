"""A stand-in engine: starts in a fraction of a second, answers fast, and misbehaves on request.

    python tests/fakes/engine.py --port 9001 [--api-key KEY] [--chunks 32] [--chunk-delay 0.01] ...

It speaks enough of llama-server's and vLLM's HTTP to stand in for either. Arguments that it does not
know are accepted (real engines get many) and told at ``GET /_debug`` with everything it has received.
``POST /_set {"fail_chat": 500}`` changes a knob while it runs. Only ``/health`` and ``/_*`` are open
when there is a key.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

KEPT_REQUESTS = 200
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream")
_TEXT = (b"content-type", b"text/plain; version=0.0.4")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0: any free one, told on stderr")
    add("--api-key", help="one or more keys, with commas between")
    add("--model", "-m", "--alias", "--served-model-name", default="fake", help="the name it serves")
    add("--embedding-size", type=int, default=8)
    add("--slots", type=int, default=None, help="requests served at once; further ones wait")
    add("--context", type=int, default=4096)
    # What it answers.
    add("--chunks", type=int, default=32, help="tokens of every answer")
    add("--chunk-delay", type=float, default=0.0, help="seconds before each token")
    add("--first-delay", type=float, default=0.0, help="seconds before the first token, on top")
    # How it starts.
    add("--ready-after", type=float, default=0.0, help="seconds of 503 at /health")
    add("--never-ready", action="store_true")
    add("--health-status", type=int, default=None, help="answer of /health once loaded, instead of 200")
    # How it dies.
    add("--print", action="append", default=[], help="a line for stderr at the start")
    add("--exit-code", type=int, default=None, help="print, then exit at once")
    add("--die-after", type=float, default=None, help="exit after so many seconds, with --die-code")
    add("--die-code", type=int, default=1)
    add("--segv", action="store_true", help="die of a segmentation fault (after --die-after)")
    add("--abort", action="store_true", help="die of SIGABRT, as a GPU's driver makes its user die")
    add("--last-words", action="append", default=[], help="a line for stderr before a death in mid-life")
    add("--die-of-request", action="store_true", help="the next generating request is the last")
    add("--ignore-term", action="store_true")
    add("--spawn-grandchild", action="store_true", help="a child in a session of its own, deaf to TERM")
    add("--pid-file", default=None, help="written with the ids of this process and of its grandchild")
    # How it prints.
    add("--flood", action="store_true", help="print without end and without newlines")
    add("--flood-lines", action="store_true", help="print short lines without end")
    add("--flood-bytes", type=int, default=None, help="end the flood after so many bytes")
    add("--close-stdout", action="store_true")
    # How its requests fail.
    add("--fail-chat", type=int, default=None, help="status of every generating request")
    add("--fail-first", type=int, default=None, help="only so many of them fail")
    add("--break-after", type=int, default=None, help="cut the connection after so many chunks")
    add("--exit-after-chunks", type=int, default=None, help="the process dies after so many chunks")
    add("--hang", action="store_true", help="take generating requests and never answer")
    add("--hang-health", action="store_true", help="take health requests and never answer")
    return parser.parse_known_args(argv)


class FakeEngine:
    """A bare ASGI application; one process, one loop, no framework in the way of a benchmark."""

    def __init__(self, knobs: argparse.Namespace, ignored: list[str], argv: list[str]) -> None:
        self.knobs = knobs
        self.ignored = ignored
        self.argv = argv
        self.ready_at = time.monotonic() + knobs.ready_after
        self.keys = set(filter(None, (knobs.api_key or "").split(",")))
        self.requests: deque[tuple[Scope, bytes]] = deque(maxlen=KEPT_REQUESTS)
        self.counts: Counter[str] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0
        self.running = 0
        self.slots = None if knobs.slots is None else asyncio.Semaphore(knobs.slots)
        self.pieces: dict[tuple[str, bool], list[bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        body = await _body(receive)
        if path.startswith("/_"):
            await self.control(path, body, send)
            return
        if path == "/health":
            await self.health(send)
            return
        self.counts["requests"] += 1
        self.requests.append((scope, body))
        if self.keys and _bearer(scope) not in self.keys:
            await _error(send, 401, "Invalid API Key", "authentication_error")
        elif time.monotonic() < self.ready_at or self.knobs.never_ready:
            await _error(send, 503, "Loading model", "unavailable_error")
        elif method == "GET":
            await self.get(path, send)
        elif method == "POST":
            await self.post(path, body, receive, send)
        else:
            await _error(send, 405, "Method Not Allowed", "invalid_request_error")

    # -- what the engine says of itself -----------------------------------------------------------

    async def health(self, send: Send) -> None:
        if self.knobs.hang_health:
            await asyncio.Event().wait()
        if time.monotonic() < self.ready_at or self.knobs.never_ready:
            await _error(send, 503, "Loading model", "unavailable_error")
        elif self.knobs.health_status is not None:
            await _error(send, self.knobs.health_status, "not well", "server_error")
        else:
            await _json(send, {"status": "ok"})

    async def control(self, path: str, body: bytes, send: Send) -> None:
        if path == "/_set":
            changes = json.loads(body)
            for name, value in changes.items():
                if not hasattr(self.knobs, name):
                    await _error(send, 400, f"no such knob: {name}", "invalid_request_error")
                    return
                setattr(self.knobs, name, value)
            self.pieces.clear()
        elif path != "/_debug":
            await _error(send, 404, f"no such page: {path}", "not_found_error")
            return
        requests = [
            {
                "method": scope["method"],
                "path": scope["path"],
                "headers": {name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
                "body": _parsed(received),
            }
            for scope, received in self.requests
        ]
        await _json(
            send,
            {
                "requests": requests,
                "total": self.counts["requests"],
                "completed": self.counts["completed"],
                "cancelled": self.counts["cancelled"],
                "failed": self.counts["failed"],
                "in_flight": self.in_flight,
                "max_in_flight": self.max_in_flight,
                "argv": self.argv,
                "ignored": self.ignored,
                "pid": os.getpid(),
            },
        )

    async def get(self, path: str, send: Send) -> None:
        if path == "/v1/models":
            model = {"id": self.knobs.model, "object": "model", "created": 0, "owned_by": "fake"}
            await _json(send, {"object": "list", "data": [model]})
        elif path == "/slots":
            count = self.knobs.slots or max(self.running, 1)
            slots = [
                {"id": n, "is_processing": n < self.running, "n_ctx": self.knobs.context}
                for n in range(count)
            ]
            await _json(send, slots)
        elif path == "/props":
            settings = {"n_ctx": self.knobs.context}
            await _json(
                send,
                {
                    "default_generation_settings": settings,
                    "total_slots": self.knobs.slots or 1,
                    "model_alias": self.knobs.model,
                },
            )
        elif path == "/metrics":
            await _answer(send, 200, self.metrics().encode(), _TEXT)
        else:
            await _error(send, 404, "File Not Found", "not_found_error")

    def metrics(self) -> str:
        waiting = self.in_flight - self.running
        figures = {
            "llamacpp:requests_processing": self.running,
            "llamacpp:requests_deferred": waiting,
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": waiting,
            # Of builds before the middle of 2025; vLLM tells it still.
            "llamacpp:kv_cache_usage_ratio": self.running / (self.knobs.slots or 1),
            "llamacpp:tokens_predicted_total": self.counts["completed"] * self.knobs.chunks,
        }
        return "".join(f"# TYPE {name} gauge\n{name} {value}\n" for name, value in figures.items())

    # -- what it is there for ---------------------------------------------------------------------

    async def post(self, path: str, body: bytes, receive: Receive, send: Send) -> None:
        request = _parsed(body)
        if not isinstance(request, dict):
            await _error(send, 400, "the body is not a JSON object", "invalid_request_error")
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await self.admit(request, path == "/v1/chat/completions", receive, send)
        elif path in ("/v1/embeddings", "/embeddings"):
            await self.embed(request, send)
        elif path in ("/v1/rerank", "/rerank"):
            await self.rerank(request, send)
        elif path in ("/tokenize", "/v1/tokenize"):
            tokens = [len(word) for word in str(request.get("content", request.get("prompt", ""))).split()]
            await _json(send, {"tokens": tokens, "count": len(tokens), "max_model_len": self.knobs.context})
        else:
            await _error(send, 404, "File Not Found", "not_found_error")

    async def admit(self, request: dict[str, Any], chat: bool, receive: Receive, send: Send) -> None:
        """Count a generating request in and out; a client that leaves ends it, as in a real engine."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        work = asyncio.current_task()
        left = asyncio.ensure_future(_until_disconnected(receive))
        left.add_done_callback(lambda done: done.cancelled() or work is None or work.cancel())
        outcome = "cancelled"
        try:
            outcome = "completed" if await self.serve(request, chat, send) else "failed"
        except asyncio.CancelledError:
            if not left.done():
                raise  # the server is shutting down
        finally:
            left.cancel()
            self.counts[outcome] += 1
            self.in_flight -= 1

    async def serve(self, request: dict[str, Any], chat: bool, send: Send) -> bool:
        knobs = self.knobs
        if knobs.die_of_request:
            die(knobs)
        if knobs.hang:
            await asyncio.Event().wait()
        if knobs.fail_chat is not None and knobs.fail_first != 0:
            if knobs.fail_first is not None:
                knobs.fail_first -= 1
            await _error(send, knobs.fail_chat, "told to fail", "server_error")
            return False
        if self.slots is None:
            return await self.generate(request, chat, send)
        async with self.slots:
            return await self.generate(request, chat, send)

    async def generate(self, request: dict[str, Any], chat: bool, send: Send) -> bool:
        self.running += 1
        try:
            asked = request.get("max_completion_tokens") or request.get("max_tokens")
            count = min(self.knobs.chunks, asked) if asked else self.knobs.chunks
            if request.get("stream"):
                return await self.stream(request, chat, count, send)
            delay_s = self.knobs.first_delay + count * self.knobs.chunk_delay
            if delay_s:
                await asyncio.sleep(delay_s)
            await _json(send, self.whole(request, chat, count))
            return True
        finally:
            self.running -= 1

    def whole(self, request: dict[str, Any], chat: bool, count: int) -> dict[str, Any]:
        text = "".join(f"tok{n} " for n in range(count))
        reason = "stop" if count == self.knobs.chunks else "length"
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if chat and (call := _tool_call(request)) is not None:
            choice["finish_reason"] = "tool_calls"
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
        elif chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": "fake-1",
            "object": kind,
            "created": 0,
            "model": self.knobs.model,
            "choices": [choice],
            "usage": _usage(request, count),
        }

    async def stream(self, request: dict[str, Any], chat: bool, count: int, send: Send) -> bool:
        knobs = self.knobs
        await send({"type": "http.response.start", "status": 200, "headers": [_EVENTS]})
        if knobs.first_delay:
            await asyncio.sleep(knobs.first_delay)
        call = _tool_call(request) if chat else None
        pieces = self.stream_pieces(chat, count) if call is None else list(self.call_pieces(call))
        for sent, piece in enumerate(pieces, start=1):
            # Each token is a write of its own, also without a delay.
            await asyncio.sleep(knobs.chunk_delay)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if sent == knobs.exit_after_chunks:
                os._exit(knobs.die_code)
            if sent == knobs.break_after:
                # An application that returns in mid-body has its connection cut by the server.
                return False
        last = b""
        if (request.get("stream_options") or {}).get("include_usage"):
            last = _event(self.chunk(chat, usage=_usage(request, count)))
        await send({"type": "http.response.body", "body": last + b"data: [DONE]\n\n", "more_body": False})
        return True

    def stream_pieces(self, chat: bool, count: int) -> list[bytes]:
        """All events but the last, made once: as a stand-in in benchmarks it must cost next to nothing."""
        complete = count == self.knobs.chunks
        pieces = self.pieces.get(("chat" if chat else "text", complete)) if complete else None
        if pieces is None:
            pieces = list(self.make_pieces(chat, count))
            if complete:
                self.pieces["chat" if chat else "text", True] = pieces
        return pieces

    def make_pieces(self, chat: bool, count: int) -> Iterator[bytes]:
        head = _event(self.chunk(chat, delta={"role": "assistant", "content": None})) if chat else b""
        for n in range(count):
            word = f"tok{n} "
            event = self.chunk(chat, delta={"content": word}) if chat else self.chunk(chat, text=word)
            yield head + _event(event)
            head = b""
        reason = "stop" if count == self.knobs.chunks else "length"
        yield _event(self.chunk(chat, delta={}, text="", reason=reason))

    def call_pieces(self, call: dict[str, Any]) -> Iterator[bytes]:
        """A tool call as engines stream it: its name first, then its arguments in parts."""
        arguments = call["function"]["arguments"]
        opened = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        yield _event(self.chunk(True, delta={"role": "assistant", "content": None, "tool_calls": [opened]}))
        for part in (arguments[: len(arguments) // 2], arguments[len(arguments) // 2 :]):
            more = {"index": 0, "function": {"arguments": part}}
            yield _event(self.chunk(True, delta={"tool_calls": [more]}))
        yield _event(self.chunk(True, delta={}, reason="tool_calls"))

    def chunk(
        self,
        chat: bool,
        *,
        delta: dict[str, Any] | None = None,
        text: str | None = None,
        reason: str | None = None,
        usage: dict[str, int] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": reason} | ({"delta": delta} if chat else {"text": text})
        kind = "chat.completion.chunk" if chat else "text_completion"
        event: dict[str, Any] = {"id": "fake-1", "object": kind, "created": 0, "model": self.knobs.model}
        event["choices"] = [] if usage else [choice]
        return event | ({"usage": usage} if usage else {})

    async def embed(self, request: dict[str, Any], send: Send) -> None:
        given = request.get("input", "")
        texts = given if isinstance(given, list) else [given]
        data = [
            {"object": "embedding", "index": n, "embedding": _vector(str(text), self.knobs.embedding_size)}
            for n, text in enumerate(texts)
        ]
        tokens = sum(len(str(text).split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        await _json(send, {"object": "list", "model": self.knobs.model, "data": data, "usage": usage})

    async def rerank(self, request: dict[str, Any], send: Send) -> None:
        query = set(str(request.get("query", "")).lower().split())
        scored = [
            {"index": n, "relevance_score": float(len(query & set(str(text).lower().split())))}
            for n, text in enumerate(request.get("documents", []))
        ]
        scored.sort(key=lambda row: -row["relevance_score"])
        await _json(send, {"model": self.knobs.model, "object": "list", "results": scored})


def _bearer(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            given: str = value.decode("latin-1")
            return given.removeprefix("Bearer ")
    return None


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes, kind: tuple[bytes, bytes]) -> None:
    headers = [kind, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _json(send: Send, content: object) -> None:
    await _answer(send, 200, json.dumps(content).encode(), _JSON)


async def _error(send: Send, status: int, message: str, kind: str) -> None:
    error = {"message": message, "type": kind, "param": None, "code": status}
    await _answer(send, status, json.dumps({"error": error}).encode(), _JSON)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode("utf-8", "replace")


def _event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _tool_call(request: dict[str, Any]) -> dict[str, Any] | None:
    """A call of the first tool with a word for each of its parameters, until it has been answered."""
    tools, messages = request.get("tools"), request.get("messages")
    if not tools or request.get("tool_choice") == "none" or not messages or messages[-1]["role"] == "tool":
        return None
    function = tools[0]["function"]
    parameters = function.get("parameters", {}).get("properties", {})
    arguments = json.dumps({name: f"some {name}" for name in parameters})
    return {
        "id": "call-1",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _usage(request: dict[str, Any], count: int) -> dict[str, int]:
    prompt = len(str(request.get("messages", request.get("prompt", ""))).split())
    return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def _vector(text: str, size: int) -> list[float]:
    """The same text always gives the same direction; length 1, as real ones have."""
    digest = hashlib.shake_128(text.encode()).digest(size)
    values = [byte - 127.5 for byte in digest]
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


def misbehave_at_start(knobs: argparse.Namespace) -> None:
    """Everything that happens before, or instead of, serving."""
    for line in knobs.print:
        print(line, file=sys.stderr, flush=True)
    pids = [os.getpid()]
    if knobs.spawn_grandchild:
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        grandchild = subprocess.Popen([sys.executable, "-I", "-S", "-c", deaf], start_new_session=True)
        pids.append(grandchild.pid)
    if knobs.pid_file:
        # Written under another name first: whoever waits for the file finds it complete.
        with open(f"{knobs.pid_file}.new", "w") as file:  # noqa: PTH123 - pathlib would slow down the start
            file.write(" ".join(map(str, pids)))
        os.replace(f"{knobs.pid_file}.new", knobs.pid_file)  # noqa: PTH105 - same
    if knobs.flood or knobs.flood_lines:
        flood(b"x" * 65536 if knobs.flood else b"a short line of output\n" * 2048, knobs.flood_bytes)
    if knobs.close_stdout:
        # Closed for whoever reads them; a number that is free would be taken by the next socket.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            os.dup2(nowhere, fd)
    if knobs.exit_code is not None:
        sys.stderr.flush()
        os._exit(knobs.exit_code)
    if knobs.segv and knobs.die_after is None:
        os.kill(os.getpid(), signal.SIGSEGV)


def flood(piece: bytes, limit: int | None) -> None:
    """Print as fast as the reader takes it: in a thread without end, or at once up to ``limit``."""
    if limit is not None:
        for _ in range(-(-limit // len(piece))):
            os.write(2, piece)
        return
    import threading

    def forever() -> None:
        while True:
            os.write(2, piece)

    threading.Thread(target=forever, daemon=True).start()


async def run(knobs: argparse.Namespace, ignored: list[str], argv: list[str]) -> None:
    import uvicorn.config
    import uvicorn.server

    class DeafServer(uvicorn.server.Server):
        """Leaves the signals alone: how this engine ends is for its knobs to say."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    engine = FakeEngine(knobs, ignored, argv)
    listener = socket.socket(socket.AF_INET6 if ":" in knobs.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((knobs.host, knobs.port))
    config = uvicorn.config.Config(
        engine,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        backlog=2048,
        timeout_graceful_shutdown=1,
    )
    server = DeafServer(config)
    loop = asyncio.get_running_loop()
    if knobs.die_after is not None:
        loop.call_later(knobs.die_after, die, knobs)
    print(f"fake engine listens on {knobs.host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    term = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, term.set)
    serving = asyncio.ensure_future(server.serve([listener]))
    while True:
        await term.wait()
        term.clear()
        if not knobs.ignore_term:
            break
        print("TERM is ignored", file=sys.stderr, flush=True)
    server.should_exit = True
    await serving


def die(knobs: argparse.Namespace) -> None:
    for line in knobs.last_words:
        print(line, file=sys.stderr, flush=True)
    if knobs.segv:
        os.kill(os.getpid(), signal.SIGSEGV)
    if knobs.abort:
        os.kill(os.getpid(), signal.SIGABRT)
    os._exit(knobs.die_code)


def main() -> None:
    import uvloop

    argv = sys.argv[1:]
    knobs, ignored = parse(argv)
    misbehave_at_start(knobs)
    uvloop.run(run(knobs, ignored, argv))


if __name__ == "__main__":
    main()
