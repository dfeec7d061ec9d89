"""`up` as far as it needs no Ray: its addresses and its signals. The rest is in tests/e2e."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from xgen_ray.cli.up import interrupting, reached_at


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("127.0.0.9", "http://127.0.0.9:8000"),
        ("localhost", "http://localhost:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("192.0.2.7", "http://192.0.2.7:8000"),
        ("gpu-1.lab", "http://gpu-1.lab:8000"),
        ("::1", "http://[::1]:8000"),
        ("fd00::2", "http://[fd00::2]:8000"),
    ],
)
def test_a_server_is_reached_where_it_listens(host: str, url: str) -> None:
    assert reached_at(host, 8000) == url


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
    os.kill(os.getpid(), number)
    assert stop.wait(5)
