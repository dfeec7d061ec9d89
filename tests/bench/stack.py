"""The engines to measure, each reachable directly and through xgen-ray."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.backends.vllm_standin import HF_MODEL, REAL_VLLM
from tests.stack import SAMPLE_MODEL, Stack, stand_in_arguments, wait_until
from xgen_ray.bench import Target
from xgen_ray.errors import EngineFailed
from xgen_ray.hardware.host import read_host

_MODEL = "bench"
_LLAMA_KEY = "LLAMA_API_KEY"
_VLLM_KEY = "VLLM_API_KEY"
_TRIED_IN_S = 120.0


@dataclass(frozen=True, slots=True)
class Pair:
    """One engine, asked in two ways. ``requests`` is a fair number for a round of a level, and prompts
    are of ``prompt_words``: a CPU takes longer to read them than to answer.
    """

    name: str
    direct: Target
    through: Target
    requests: int
    prompt_words: int = 64


@contextmanager
def _pair(
    name: str,
    requests: int,
    options: Mapping[str, Any],
    arguments: Sequence[str] = (),
    prompt_words: int = 64,
    model: Path = SAMPLE_MODEL,
    key_variable: str = _LLAMA_KEY,
) -> Iterator[Pair]:
    """A stack of its own with one engine; all of it is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="xgen-ray-bench-") as home,
        Stack(Path(home), "--models", str(model.parent), *arguments) as stack,
    ):
        asked = {"model": str(model), "options": options}
        # A node that has vLLM has tried it after a while.
        wait_until(
            lambda: stack.management("POST", "plan", json=asked).status_code == 200,
            _TRIED_IN_S,
            "a plan for the model",
        )
        answer = stack.load(model, name=_MODEL, options=options)
        if answer.status_code != 200:
            raise EngineFailed(f"{name} was not loaded: {answer.text}")
        replica = answer.json()["replicas"][0]
        # The operator of this machine may read what a client may not: the engine's own key.
        key = psutil.Process(replica["pid"]).environ()[key_variable]
        direct, through = Target(replica["url"], _MODEL, key), Target(stack.url, _MODEL)
        yield Pair(name, direct, through, requests, prompt_words)


def stand_in() -> AbstractContextManager[Pair]:
    """The stand-in engine: 32 chunks without delay. What is measured is the way there."""
    return _pair("stand-in engine", 640, {}, list(stand_in_arguments()))


def real() -> AbstractContextManager[Pair]:
    """llama.cpp with the sample model, with a slot for every stream."""
    options = {"context": 512, "slots": 32, "threads": 1}
    return _pair("llama-server on the CPU", 32, options, prompt_words=8)


def vllm_dtype() -> str:
    """What this processor computes fast in."""
    return "bfloat16" if "avx512f" in read_host().cpu_flags else "float32"


def vllm(slots: int = 32, context: int = 1024) -> AbstractContextManager[Pair]:
    """vLLM's CPU build with the sample model as a Hugging Face folder."""
    options = {"context": context, "slots": slots, "threads": 1, "dtype": vllm_dtype(), "enforce_eager": True}
    engine = f"vllm-cpu={REAL_VLLM / 'bin' / 'python'}"
    return _pair(
        "vLLM on the CPU",
        32,
        options,
        ["--engine", engine],
        prompt_words=32,
        model=HF_MODEL,
        key_variable=_VLLM_KEY,
    )


ENGINES: Sequence[Callable[[], AbstractContextManager[Pair]]] = (stand_in, real, vllm)
