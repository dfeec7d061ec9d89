"""For all tests: Ctrl-C reaches the programs that they start; what takes long to ask is asked once."""

import signal
from pathlib import Path

import pytest

# A shell has it ignored in what it starts in the background, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engine_answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for what builds of engines say of themselves: vLLM takes half a minute of a core to."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "engines").mkdir()
    return folder
