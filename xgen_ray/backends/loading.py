"""How far a load is, guessed from outside: an engine's log names steps, the kernel tells the memory."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

import psutil

from xgen_ray.backends.engine import OnProgress
from xgen_ray.process import ChildProcess
from xgen_ray.schema import Progress

INTERVAL_S: Final = 0.5
FIRST_STEP: Final = "reading the model"
_STEPS: Final = (
    (
        re.compile(
            r"loading model|load_tensors|loading weights|starting to load|checkpoint shards|initializing a v",
            re.IGNORECASE,
        ),
        FIRST_STEP,
    ),
    (re.compile(r"threadpool init|warming up|warmup", re.IGNORECASE), "warming up"),
    (
        re.compile(r"initializing,? (?:slots|n_slots)|KV cache (?:size|layout|on node)", re.IGNORECASE),
        "making room for requests",
    ),
    (
        re.compile(r"Dynamo bytecode|Compiling a graph|torch\.compile (?:takes|took)|Capturing CUDA graph"),
        "compiling, and recording GPU graphs",
    ),
    (re.compile(r"init engine .* took"), "warming up"),
    (
        re.compile(r"model loaded|listening on|starting vllm|application startup", re.IGNORECASE),
        "about to answer",
    ),
)
# What vLLM tells of the weights: its own process maps none of them.
_SHARDS = re.compile(r"checkpoint shards:\s+(\d+)% Completed")


def step(lines: Sequence[str], before: str) -> str:
    """The step that the latest of ``lines`` to name one has named, else the one ``before``."""
    for line in reversed(lines):
        for pattern, words in _STEPS:
            if pattern.search(line):
                return words
    return before


def shards_read(lines: Sequence[str], before: float | None) -> float | None:
    """The part of the weights that the latest of ``lines`` says is read, else the part ``before``."""
    for line in reversed(lines):
        if found := _SHARDS.search(line):
            return int(found[1]) / 100
    return before


@contextlib.asynccontextmanager
async def report_loading(
    weight_bytes: int, child: ChildProcess, on_progress: OnProgress, *, maps_model: bool = True
) -> AsyncIterator[None]:
    """While the block runs, tell ``on_progress`` what has changed.

    ``maps_model``: the memory of ``child`` itself tells how much of the model is read; else its log does.
    """
    task = asyncio.create_task(_follow(weight_bytes, child, on_progress, maps_model), name="loading progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(weight_bytes: int, child: ChildProcess, on_progress: OnProgress, maps_model: bool) -> None:
    message, position, told, part = FIRST_STEP, 0, None, None
    while True:
        lines, position = child.logs.read(position)
        message = step(lines, message)
        part = shards_read(lines, part)
        if maps_model:
            done = _resident_bytes(child.pid)
        else:
            done = None if part is None else int(part * weight_bytes)
        progress = Progress(
            stage="load",
            message=message,
            # What a process maps of a model file counts as its own, so this grows with what was read.
            done_bytes=None if done is None else min(done, weight_bytes),
            total_bytes=weight_bytes,
        )
        if progress != told:
            on_progress(progress)
            told = progress
        await asyncio.sleep(INTERVAL_S)


def _resident_bytes(pid: int | None) -> int | None:
    try:
        return None if pid is None else psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
