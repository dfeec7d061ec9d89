"""`up` as far as it needs no Ray: its addresses and its signals. The rest is in tests/e2e."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Call
from xgen_ray.cli.exits import ExitCode
from xgen_ray.cli.up import interrupting


@pytest.mark.parametrize("host", ["192.0.2.7", "gpu-1.lab", "::", "::1", "127.0.0.9", ""])
def test_an_address_at_which_the_proxy_would_miss_its_routers_is_refused(call: Call, host: str) -> None:
    result = call("up", "--host", host, "--api-key", "alice=sk-1")
    assert result.exit_code == ExitCode.USAGE
    assert "only on 127.0.0.1 or on all IPv4 addresses" in result.stderr


@pytest.fixture
def _handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_that_blocks_and_asks_what_runs_to_stop(number: signal.Signals) -> None:
    stop = threading.Event()
    began = time.monotonic()

    def start() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt), interrupting(stop):
        start()
    assert time.monotonic() - began < 20
    assert not stop.is_set()
    # Many at once: each may find this thread in the middle of what the one before began.
    for _ in range(500):
        os.kill(os.getpid(), number)
    assert stop.wait(5)
