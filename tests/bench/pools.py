"""One name over vLLM and llama-server under one load, from one engine each to two, to none, and back.

    make test                     # once: sets up vLLM's CPU build and the models
    python -m tests.bench.pools   # 5 to 10 minutes; vLLM starts three times

Both pools grow under the load, an engine of each is killed meanwhile, all fall asleep when the load ends,
and a request wakes each. Prints what happened when, who answered how fast, and every request that failed.
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from tests.backends.vllm_standin import HF_MODEL, REAL_VLLM, why_no_vllm
from tests.clients import Traffic
from tests.stack import SAMPLE_MODEL, Stack, wait_until

NAME = "one"
POOLS = {"vllm": ("vllm-cpu", HF_MODEL), "gguf": ("llama-server-cpu", SAMPLE_MODEL)}
SCALING = {
    "min_replicas": 0,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 2.0,
    # Both pools are to have two at one time: the first that has grown must not shrink while vLLM starts.
    "downscale_delay_s": 300.0,
    "ttl_s": 20.0,
}
PATIENCE_S = 400.0


class Timeline:
    """What happened, with the seconds since the beginning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.1f} s  {text}", highlight=False)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(condition, PATIENCE_S, what)
        self.note(what)


def engines(stack: Stack, pool: str) -> list[int]:
    """The processes of the pool's engines that are ready."""
    status = stack.status(f"{NAME}@{pool}")
    return [one["pid"] for one in status["replicas"] if one["state"] == "ready"] if status else []


def asleep(stack: Stack) -> bool:
    statuses = [stack.status(f"{NAME}@{pool}") for pool in POOLS]
    return all(status is not None and status["phase"] == "sleeping" for status in statuses)


def begin(stack: Stack, pool: str) -> None:
    backend, model = POOLS[pool]
    options = {"backend": backend, "context": 512, "slots": 4, "threads": 1}
    asked = {"model": str(model), "options": options}
    wait_until(lambda: stack.management("POST", "plan", json=asked).status_code == 200, PATIENCE_S, "a plan")
    answer = stack.load(model, name=NAME, pool=pool, options=options, scaling=SCALING)
    assert answer.status_code == 200, answer.text


def kill_one(stack: Stack, pool: str, told: Timeline) -> None:
    killed = engines(stack, pool)[0]
    psutil.Process(killed).kill()
    told.note(f"{pool}: an engine is killed under load")

    def replaced() -> bool:
        ready = engines(stack, pool)
        return len(ready) == 2 and killed not in ready

    told.until(replaced, f"{pool}: two engines again")


def all_have(stack: Stack, count: int) -> bool:
    return all(len(engines(stack, pool)) == count for pool in POOLS)


def run(stack: Stack, clients_count: int, told: Timeline) -> tuple[Traffic, list[httpx.Response]]:
    """The whole tide; the clients of the flood, and the answers that woke the pools."""
    for pool in POOLS:
        begin(stack, pool)
        told.note(f"{pool}: one engine")
    with Traffic(stack, [NAME] * clients_count, max_tokens=16) as flood:
        told.until(lambda: all_have(stack, 2), "two engines in both pools")
        for pool in POOLS:
            kill_one(stack, pool, told)
    told.note(f"the load ends: {len(flood.answers)} requests, {len(flood.failures())} failed")
    told.until(lambda: asleep(stack), "both pools asleep")
    wait_until(lambda: not stack.named("bundled_llama_server"), 60, "no llama-server")
    wait_until(lambda: not stack.named("vllm.entrypoints"), 60, "no vLLM")
    told.note("no engine is left")
    woken = []
    for pool in POOLS:
        began = time.monotonic()
        woken.append(stack.chat(f"{NAME}@{pool}"))
        told.note(f"{pool}: woken by a request, which was answered after {time.monotonic() - began:.1f} s")
    told.until(lambda: all_have(stack, 1), "one engine in both pools")
    return flood, woken


def render(flood: Traffic) -> Table:
    by_pool: dict[str, list[float]] = defaultdict(list)
    for one in flood.answers:
        if one.status == httpx.codes.OK:
            by_pool[one.headers["x-xgen-pool"]].append(one.took_s)
    table = Table(box=None, pad_edge=False)
    for column in ("pool", "answers", "median s"):
        table.add_column(column, justify="left" if column == "pool" else "right")
    for pool, seconds in sorted(by_pool.items()):
        table.add_row(pool, str(len(seconds)), f"{median(seconds):.2f}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """1 if any request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pools", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args(argv)
    if missing := why_no_vllm():
        parser.error(missing)
    console = Console(width=None if sys.stdout.isatty() else 160)
    told = Timeline(console)
    engine = f"vllm-cpu={REAL_VLLM / 'bin' / 'python'}"
    with (
        tempfile.TemporaryDirectory(prefix="xgen-ray-bench-") as home,
        Stack(Path(home), "--models", str(HF_MODEL.parent), "--engine", engine) as stack,
    ):
        told.note("the stack serves")
        flood, woken = run(stack, given.clients, told)
    console.print(render(flood))
    failed = [*flood.failures(), *(one.text for one in woken if one.status_code != 200)]
    for one in failed[:5]:
        console.print(str(one)[:300], markup=False)
    console.print(f"{len(flood.answers) + len(woken)} requests, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
