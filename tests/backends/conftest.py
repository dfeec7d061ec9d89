import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "fake_llama_server.sh"


@pytest.fixture
def fake() -> Callable[[str], tuple[str, ...]]:
    """The command of a llama-server that behaves as it is told."""
    return lambda behaviour: ("sh", str(FAKE), sys.executable, behaviour)


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str], str]:
    """Puts a fake llama-server of some name and behaviour into a folder; returns the folder, for PATH."""

    def put(name: str, behaviour: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec sh {FAKE} {sys.executable} {behaviour} "$@"\n')
        program.chmod(0o755)
        return str(folder)

    return put


@pytest.fixture
def no_llama_cpp_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python in which llama-cpp-python is not installed: the import system takes None for absent."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
