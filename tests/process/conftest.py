"""Real children: the fake engine, small scripts, and a way to see them die."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.process.watching import Deaths, eventually
from xgen_ray.process import ChildProcess, LaunchSpec, LogRing, Readiness, free_port

ENGINE = Path(__file__).parents[1] / "fakes" / "engine.py"


@pytest.fixture
def deaths() -> Iterator[Deaths]:
    watcher = Deaths()
    yield watcher
    watcher.close()


def python(code: str, **changes: Any) -> ChildProcess:
    """A child that runs ``code``, with the standard library only, which it starts twice as fast with."""
    argv = (sys.executable, "-I", "-S", "-c", code)
    return ChildProcess(LaunchSpec(argv, **changes), base_env=dict(os.environ))


# Tells when TERM is ignored from now on, and each time it comes: not by print, which may be at work on "up"
# still and cannot be entered twice.
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"TERM is ignored\\n"))
print("up", flush=True)
while True:
    time.sleep(60)
"""


async def started(child: ChildProcess) -> int:
    """The id of a child that runs and has said something."""
    await child.start()
    await eventually(lambda: bool(child.logs.tail()))
    assert child.pid is not None
    return child.pid


EngineMaker = Callable[..., ChildProcess]


@pytest.fixture
def engine() -> EngineMaker:
    """Makes (does not start) a fake engine with these arguments on a free port."""

    def make(
        *arguments: str,
        port: int | None = None,
        deadline_s: float = 20.0,
        grace_s: float = 5.0,
        secrets: tuple[str, ...] = (),
        logs: LogRing | None = None,
        env: Mapping[str, str | None] | None = None,
        stuck_after_s: float = 10.0,
    ) -> ChildProcess:
        port = port or free_port()
        spec = LaunchSpec(
            argv=(sys.executable, str(ENGINE), "--port", str(port), *arguments),
            env=env or {},
            readiness=Readiness(f"http://127.0.0.1:{port}/health", deadline_s, interval_s=0.02),
            secrets=secrets,
            stop_grace_s=grace_s,
        )
        return ChildProcess(spec, logs, base_env=dict(os.environ), stuck_after_s=stuck_after_s)

    return make
