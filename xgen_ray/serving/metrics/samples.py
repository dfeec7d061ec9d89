"""From what each process knows to its samples. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from xgen_ray.backends import EngineLoad
from xgen_ray.console import EventKind, EventReport
from xgen_ray.hardware.types import GPUInfo, GPUType
from xgen_ray.placement import gpu_key
from xgen_ray.schema import Phase
from xgen_ray.serving.metrics.rows import Sample
from xgen_ray.serving.node_state import NodeState
from xgen_ray.serving.state import ControlState
from xgen_ray.serving.traffic import OUTCOMES, RouterReport, Stream, served_as

_VENDORS: Mapping[GPUType, str] = {
    GPUType.NVIDIA: "nvidia",
    GPUType.AMD_RDNA: "amd",
    GPUType.AMD_CDNA: "amd",
    GPUType.APPLE_MPS: "apple",
}


def router_samples(
    report: RouterReport, fresh: Iterable[tuple[Stream, tuple[float, ...], tuple[float, ...]]] = ()
) -> Iterator[Sample]:
    """``fresh`` are the times to the first token, and between two, that were seen since the last call."""
    for totals in report.totals:
        labels = _labels(totals.stream)
        for outcome, count in zip(OUTCOMES, totals.ended, strict=True):
            if count:
                yield Sample("xgen_requests", (*labels, outcome.value), count)
        yield Sample("xgen_tokens", labels, totals.units)
        yield Sample("xgen_requests_in_flight", labels, totals.in_flight)
    for model in {totals.stream.model for totals in report.totals} | report.waiting.keys():
        yield Sample("xgen_requests_waiting", (model,), report.waiting.get(model, 0))
    for stream, first, between in fresh:
        for seconds in first:
            yield Sample("xgen_first_token_seconds", _labels(stream), seconds)
        for seconds in between:
            yield Sample("xgen_between_tokens_seconds", _labels(stream), seconds)


def _labels(stream: Stream) -> tuple[str, ...]:
    return (stream.model, stream.pool, stream.backend)


def control_samples(state: ControlState, events: "FleetEvents") -> Iterator[Sample]:
    phases = Counter(model.phase for model in state.models.values())
    for phase in Phase:
        yield Sample("xgen_models", (phase.value,), phases[phase])
    for model in state.models.values():
        labels = (model.served_as, model.pool_name)
        asleep = model.phase is Phase.SLEEPING
        yield Sample("xgen_replicas_wanted", labels, 0 if asleep else model.wanted)
        yield Sample("xgen_replicas_ready", labels, model.ready)
    for node_id, name in (state.nodes or {}).items():
        of_autoscaler = "autoscaled" if node_id in state.node_kinds else "joined"
        yield Sample("xgen_nodes", (name, "drained" if name in state.drained else of_autoscaler), 1)
    for name in state.drained:
        yield Sample("xgen_node_drained", (name,), 1)
    yield from events.samples()


class FleetEvents:
    """Counts what has happened in this life of control: engines that failed, backends that were given up."""

    def __init__(self) -> None:
        self._failures: Counter[tuple[str, ...]] = Counter()
        self._demotions: Counter[tuple[str, ...]] = Counter()

    def count(self, events: Iterable[EventReport]) -> None:
        for event in events:
            model, backend = served_as(event.model or ""), event.backend.value if event.backend else ""
            if event.kind is EventKind.DEATH and event.failure is not None:
                self._failures[model, backend, event.node or "", event.failure.failure] += 1
            elif event.kind is EventKind.DEMOTED:
                self._demotions[model, backend] += 1

    def samples(self) -> Iterator[Sample]:
        for labels, count in self._failures.items():
            yield Sample("xgen_failures", labels, count)
        for labels, count in self._demotions.items():
            yield Sample("xgen_demotions", labels, count)


def node_samples(state: NodeState) -> Iterator[Sample]:
    node, usage, host = state.node.name, state.usage, state.snapshot.host
    yield Sample("xgen_leases", (node,), len(state.leases))
    leased: Counter[str] = Counter()
    for lease in state.leases:
        for claim in lease.claims:
            leased[claim.device] += claim.size_bytes
    for device, size in leased.items():
        yield Sample("xgen_leased_bytes", (node, device), size)
    yield Sample("xgen_node_memory_bytes", (node,), host.memory_total_bytes)
    yield Sample("xgen_node_memory_available_bytes", (node,), usage.memory_available_bytes)
    if usage.cpu_percent is not None:
        yield Sample("xgen_node_cpu_ratio", (node,), usage.cpu_percent / 100)
    live = {gpu_key(one): one for one in usage.gpus}
    for gpu in state.snapshot.detection.gpus:
        labels = (node, _VENDORS.get(gpu.gpu_type, "unknown"), gpu_key(gpu), gpu.device_name)
        yield from _gpu(labels, gpu)
        if (now := live.get(gpu_key(gpu))) is not None:
            busy = now.utilization_percent
            figures = {
                "memory_used_bytes": now.memory_used_bytes,
                "utilization_ratio": None if busy is None else busy / 100,
                "temperature_celsius": now.temperature_celsius,
                "power_watts": now.power_watts,
            }
            for name, value in figures.items():
                if value is not None:
                    yield Sample(f"xgen_gpu_{name}", labels, value)


def _gpu(labels: tuple[str, ...], gpu: GPUInfo) -> Iterator[Sample]:
    if gpu.memory_total_bytes is not None:
        yield Sample("xgen_gpu_memory_bytes", labels, gpu.memory_total_bytes)


def engine_samples(model: str, backend: str, node: str, replica: str, load: EngineLoad) -> Iterator[Sample]:
    """``model`` is what control knows it by: its name, and its pool if it is one of several."""
    name, _, pool = model.partition("@")
    # A pool without a name is called after its backend, as in the routing table.
    labels = (name, pool or backend, backend, node, replica)
    yield Sample("xgen_engine_slots", labels, load.slots)
    yield Sample("xgen_engine_running", labels, load.running)
    yield Sample("xgen_engine_waiting", labels, load.waiting)
    if load.cache_used is not None:
        yield Sample("xgen_engine_cache_ratio", labels, load.cache_used)
    if load.prompt_tokens is not None:
        yield Sample("xgen_engine_prompt_tokens", labels, load.prompt_tokens)
    if load.generated_tokens is not None:
        yield Sample("xgen_engine_generated_tokens", labels, load.generated_tokens)
