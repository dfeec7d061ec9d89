"""The real stack as a child process: ``xgen-ray up``, watched from outside as an operator would."""

import ctypes
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from xgen_ray.process import free_port

REPOSITORY = Path(__file__).parent.parent
SAMPLE_MODEL = REPOSITORY / "models" / "smollm2-135m-instruct-q4_1.gguf"
STAND_IN_ENGINE = REPOSITORY / "tests" / "fakes" / "llama_server.py"
START_DEADLINE_S = 240.0
STOP_DEADLINE_S = 60.0
# Nothing here speaks TLS. Without an empty context each request would read all certificate authorities: 23 ms
# of a core, ten times a second where something is waited for.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Client:
    """What is asked of a running stack over HTTP; ``url`` is where it serves."""

    def __init__(self, url: str) -> None:
        self.url = url

    def management(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._ask(method, f"api/management/{path}", **options)

    def load(self, model: Path | str, **request: Any) -> httpx.Response:
        return self.management("POST", "load", json={"model": str(model), **request})

    def chat(self, model: str, **more: Any) -> httpx.Response:
        """A short question to ``model``, without the official client."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **more}
        return self._ask("POST", "v1/chat/completions", json=body)

    def rank(self, model: str, **more: Any) -> httpx.Response:
        return self._ask("POST", "v1/rerank", json={"model": model, **more})

    def unload(self, name: str) -> httpx.Response:
        return self.management("POST", "unload", json={"name": name})

    def status(self, name: str) -> dict[str, Any] | None:
        models: list[dict[str, Any]] = self.management("GET", "status").json()["models"]
        return next((model for model in models if model["name"] == name), None)

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        options = {"timeout": START_DEADLINE_S, "trust_env": False, "verify": NO_TLS, **options}
        return httpx.request(method, f"{self.url}/{path}", **options)


class Stack(Client):
    """``xgen-ray up`` with folders of its own below ``home``; leaving the context stops it. ``environment``
    is laid over this process's own.

    Every process of it, also an orphan, carries ``home`` in its environment: that is how they are found.
    """

    # What it prints once it serves.
    announcement = "Ctrl-C stops it"

    def __init__(
        self,
        home: Path,
        *arguments: str,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.port = port or free_port()
        super().__init__(f"http://127.0.0.1:{self.port}")
        self.output: list[str] = []
        self._arguments = arguments
        self._environment = environment or {}
        self._ready = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    def command(self) -> list[str]:
        return [sys.executable, "-m", "xgen_ray", "up", "--port", str(self.port), *self._arguments]

    def start(self) -> None:
        """Returns when it says that it serves."""
        self._ready.clear()
        said = len(self.output)
        self._process = subprocess.Popen(
            self.command(),
            cwd=REPOSITORY,
            env={
                **os.environ,
                **self._environment,
                "XDG_STATE_HOME": str(self.home / "state"),
                "XDG_CACHE_HOME": str(self.home / "cache"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # one system call, no lock is taken
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        # Its output also ends when it does, a moment before the process is gone.
        if not self._ready.wait(START_DEADLINE_S) or self.announcement not in "".join(self.output[said:]):
            self.stop()
            raise AssertionError("the stack did not start:\n" + "".join(self.output))

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> float:
        """Ctrl-C, as a terminal sends it: to the whole foreground group. Returns the seconds it took."""
        began = time.monotonic()
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
        seconds = time.monotonic() - began
        if self._reader is not None:
            self._reader.join(deadline_s)
        return seconds

    def processes(self) -> list[psutil.Process]:
        """Everything of this stack that lives, wherever it hangs in the process tree."""
        mark = str(self.home / "state")
        return [process for process in psutil.process_iter() if mark in _environment(process).values()]

    def named(self, part: str) -> list[psutil.Process]:
        """The processes of this stack with ``part`` in their command line."""
        return [process for process in self.processes() if part in " ".join(command_of(process))]

    def logs(self, actor: str) -> list[str]:
        """The lines in the logs of workers whose actor's name begins so: where an operator would look."""
        (raylet,) = self.named("raylet/raylet")
        (folder,) = (word for word in command_of(raylet) if word.startswith("--log_dir="))
        texts = [path.read_text() for path in Path(folder.partition("=")[2]).glob("worker-*.err")]
        # Ray writes the name into its first lines.
        return [line for text in texts if f":actor_name:{actor}" in text for line in text.splitlines()]

    def wait_for_end(self, seconds: float) -> None:
        """Until no process of it is left; the error names those that are."""
        deadline = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > deadline:
                told = "; ".join(f"{process.pid} {' '.join(command_of(process))[:120]}" for process in left)
                raise AssertionError(f"after {seconds:.0f} s there are still: {told}")
            time.sleep(0.1)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line)
                if self.announcement in line:
                    self._ready.set()
        self._ready.set()


def _end_with_parent() -> None:
    """A test run that is killed must not leave a stack behind: it gets the signal that stops it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def wait_until(condition: Any, seconds: float, what: str) -> Any:
    """Polls what cannot be waited on, since it happens in other processes.

    What takes long is looked at less and less often: each look takes from the cores that it waits for.
    """
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        if found := condition():
            return found
        time.sleep(min(0.5, max(0.1, waited / 50)))
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Proportional set size: shared pages counted once over all who share them."""
    return sum(_pss(process) for process in processes)


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty for one that has ended."""
    try:
        return list(process.cmdline())
    except (psutil.Error, OSError):
        return []


def stand_in_arguments(*engine: str) -> Iterator[str]:
    """Arguments that make ``up`` run the stand-in engine in place of llama-server on the CPU."""
    command = " ".join([sys.executable, str(STAND_IN_ENGINE), *engine])
    yield from ("--engine", f"llama-server-cpu={command}")
