"""How long the fleet planner takes to decide, and how that grows with the fleet.

    python -m tests.bench.fleet_planner                   # 10, 100 and 1,000 nodes of 8 GPUs, 500 models
    python -m tests.bench.fleet_planner --nodes 50 --models 100

Models are placed one after another, and each stays. The first decision about a fleet also finds out which
engine's device is which GPU of every node; that is kept. Every node has live figures of its own, so no two
are quite equal. Refusals and evictions are timed on the fleet as it is once all models are placed.

Python's garbage collector looks at all objects of the process now and then, and the decision that it stops
pays for it: the last two columns show decisions without their pauses, and how long a pause lasts at most.
"""

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from rich.console import Console
from rich.table import Table

from tests.placement.builders import all_there, amd, dense, h100, host, mi300x, node, rtx4090, usage
from xgen_ray.hardware.types import GPUInfo, NodeSnapshot
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    RAM,
    Backend,
    Claim,
    EngineOptions,
    FleetPlan,
    FleetRefusal,
    IdleModel,
    NodeView,
    Outstanding,
    plan_fleet,
)
from xgen_ray.placement.sizes import GIB, MIB
from xgen_ray.placement.views import with_plan

SIZES = (10, 100, 1000)
_GPUS_A_NODE = 8


@dataclass(frozen=True, slots=True)
class Spent:
    """Milliseconds on the processor of one decision; ``collecting`` of them were the garbage collector's."""

    milliseconds: float
    collecting: float

    @property
    def deciding(self) -> float:
        return self.milliseconds - self.collecting


@dataclass(frozen=True, slots=True)
class Timing:
    """One kind of decision in a fleet of one size."""

    nodes: int
    what: str
    spent: tuple[Spent, ...]


def at(part: float, values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Pauses:
    """Adds up what the garbage collector takes; to be put among ``gc.callbacks``."""

    def __init__(self) -> None:
        self.milliseconds = 0.0
        self._started = 0.0

    def __call__(self, phase: Literal["start", "stop"], info: Mapping[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self.milliseconds += (time.thread_time() - self._started) * 1e3


def fleet(count: int, chance: random.Random) -> dict[str, NodeView]:
    """``count`` nodes of four kinds, each with 8 GPUs."""
    kinds: tuple[Callable[[int], GPUInfo], ...] = (h100, rtx4090, mi300x, _w7900)
    return {
        f"node-{number:04d}": _view(number, kinds[number % len(kinds)], chance) for number in range(count)
    }


def models(count: int, chance: random.Random) -> list[ModelFacts]:
    """Mostly small ones, some that need a large card, a few that need several; a third as safetensors."""
    made = []
    for number in range(count):
        billions = chance.choice((0.5, 1, 3, 7, 8, 8, 14, 24, 32, 70, 70, 120))
        safetensors = chance.random() < 1 / 3
        facts = dense(
            billions,
            16 if safetensors else 4.5,
            model_format=ModelFormat.SAFETENSORS if safetensors else ModelFormat.GGUF,
        )
        made.append(replace(facts, name=f"model-{number}"))
    return made


def measure(count: int, wanted: int, seed: int = 1) -> list[Timing]:
    chance = random.Random(seed)
    views = fleet(count, chance)
    placed: list[Spent] = []
    refused: list[Spent] = []
    for facts in models(wanted, chance):
        spent, answer = _timed(partial(plan_fleet, facts, EngineOptions(), list(views.values())))
        if isinstance(answer, FleetRefusal):
            refused.append(spent)
            continue
        placed.append(spent)
        (chosen,) = answer.assignments
        views[chosen.node_id] = with_plan(views[chosen.node_id], chosen.plan)
    huge = dense(4000)
    on_cuda = EngineOptions(backend=Backend.LLAMA_SERVER_CUDA, context=131_072, slots=8)
    for _ in range(20):
        refused.append(_timed(partial(plan_fleet, huge, EngineOptions(), list(views.values())))[0])
        refused.append(_timed(partial(plan_fleet, dense(400), on_cuda, list(views.values())))[0])
    evicted = [
        _timed(partial(plan_fleet, facts, EngineOptions(gpus=(0,)), _full(views)))[0]
        for facts in models(20, chance)
    ]
    return [
        Timing(count, "place the first", tuple(placed[:1])),
        Timing(count, "place", tuple(placed[1:])),
        Timing(count, "refuse", tuple(refused)),
        Timing(count, "name idle models", tuple(evicted)),
    ]


def _full(views: dict[str, NodeView]) -> list[NodeView]:
    """The same nodes with every GPU in use by an idle model."""
    full = []
    for view in views.values():
        gpus = view.snapshot.detection.gpus
        idle = tuple(
            IdleModel(
                f"idle-{view.name}-{place}", 60.0 * place, (Claim(gpu.uuid or "", 20 * GIB), Claim(RAM, GIB))
            )
            for place, gpu in enumerate(gpus)
        )
        now = usage(view.snapshot, [2 * GIB] * len(gpus), available=64 * GIB)
        full.append(replace(view, usage=now, outstanding=Outstanding(), idle_models=idle))
    return full


def _timed(
    decide: Callable[[], FleetPlan | FleetRefusal],
) -> tuple[Spent, FleetPlan | FleetRefusal]:
    pauses = Pauses()
    gc.callbacks.append(pauses)
    try:
        # Time on the processor: on a shared machine the clock on the wall tells of the neighbours too.
        started = time.thread_time()
        answer = decide()
        spent = (time.thread_time() - started) * 1e3
    finally:
        gc.callbacks.remove(pauses)
    return Spent(spent, pauses.milliseconds), answer


def _view(number: int, kind: Callable[[int], GPUInfo], chance: random.Random) -> NodeView:
    gpus = [replace(kind(place), uuid=f"GPU-{number:04d}-{place}") for place in range(_GPUS_A_NODE)]
    ram = chance.choice((512, 1024)) * GIB
    available = int(ram * chance.uniform(0.8, 0.95))
    snapshot: NodeSnapshot = node(*gpus, on=host(ram, available=available, cpus=128))
    free = [(gpu.memory_total_bytes or 0) - chance.randrange(300, 900) * MIB for gpu in gpus]
    return NodeView(
        node_id=f"node-{number:04d}",
        name=f"node-{number:04d}",
        snapshot=snapshot,
        statuses=all_there(snapshot),
        usage=usage(snapshot, free, available=available),
        outstanding=Outstanding(),
        taken=frozenset(),
        has_files=chance.random() < 0.1,
        can_fetch=True,
        tagged=True,
    )


def _w7900(place: int) -> GPUInfo:
    return amd(place, "AMD Radeon PRO W7900", "gfx1100", 48 * GIB)


def table(timings: Sequence[Timing]) -> Table:
    shown = Table(title="Fleet planner, milliseconds on the processor a decision")
    for name in ("nodes", "GPUs", "decision", "count", "p50", "p99", "max", "p99 less GC", "GC max"):
        shown.add_column(name, justify="left" if name == "decision" else "right")
    for item in timings:
        if item.spent:
            whole = [one.milliseconds for one in item.spent]
            deciding = at(0.99, (one.deciding for one in item.spent))
            values = (at(0.5, whole), at(0.99, whole), max(whole), deciding)
            figures = [f"{value:.1f}" for value in (*values, max(one.collecting for one in item.spent))]
            gpus, count = item.nodes * _GPUS_A_NODE, len(item.spent)
            shown.add_row(f"{item.nodes:,}", f"{gpus:,}", item.what, f"{count}", *figures)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the fleet planner.")
    parser.add_argument("--nodes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--models", type=int, default=500)
    asked = parser.parse_args()
    # As control does once it has started.
    gc.freeze()
    timings = [timing for count in asked.nodes for timing in measure(count, asked.models)]
    Console(width=110).print(table(timings))


if __name__ == "__main__":
    main()
