"""For all tests: Ctrl-C reaches the programs that they start; what takes long to ask is asked once; no
example of hypothesis has a deadline; what is loaded is not looked through for garbage again and again.
"""

import gc
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A shell has it ignored in what it starts in the background, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's business; the rest stays as it is, in CI as well.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Modules and collected tests stay to the end; each full round of the collector over them takes a quarter of a
# second.
gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture(scope="session")
def engine_answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for what builds of engines say of themselves: vLLM takes half a minute of a core to."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "engines").mkdir()
    return folder


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 at which nobody listens: it is taken meanwhile, so that nobody else begins to."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]
