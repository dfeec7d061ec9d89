"""Every metric of ours, as data. Its documentation and the checks of dashboards and rules read this table.

Ray's agent puts ``ray_`` before each name and ``_total`` after that of a counter, and adds labels of its own.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from xgen_ray.serving.traffic import BETWEEN_BOUNDS_S, FIRST_BOUNDS_S

LOAD_BOUNDS_S: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
_STREAM: Final = ("model", "pool", "backend")
_ENGINE: Final = (*_STREAM, "node", "replica")
_GPU: Final = ("node", "vendor", "gpu", "gpu_name")


class Kind(StrEnum):
    """As Prometheus has it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Which process tells it."""

    ROUTER = "router"
    CONTROL = "control"
    NODE = "node owner"
    ENGINE = "engine replica"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Histograms have ``bounds``, the upper ends of their buckets."""

    name: str
    kind: Kind
    source: Source
    labels: tuple[str, ...]
    help: str
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which Prometheus finds it."""
        name = f"ray_{self.name}"
        match self.kind:
            case Kind.COUNTER:
                return (f"{name}_total",)
            case Kind.GAUGE:
                return (name,)
            case Kind.HISTOGRAM:
                return tuple(f"{name}_{part}" for part in ("bucket", "sum", "count"))


METRICS: Final = (
    Metric(
        "xgen_requests",
        Kind.COUNTER,
        Source.ROUTER,
        (*_STREAM, "outcome"),
        "Requests by how they ended; one that was tried on two engines counts twice, one that was wrong "
        "before it got one not at all.",
    ),
    Metric(
        "xgen_tokens",
        Kind.COUNTER,
        Source.ROUTER,
        _STREAM,
        "What was answered: events of streams, or a quarter of the bytes.",
    ),
    Metric(
        "xgen_first_token_seconds",
        Kind.HISTOGRAM,
        Source.ROUTER,
        _STREAM,
        "From the choice of an engine to the first byte of a streamed answer.",
        FIRST_BOUNDS_S,
    ),
    Metric(
        "xgen_between_tokens_seconds",
        Kind.HISTOGRAM,
        Source.ROUTER,
        _STREAM,
        "Mean time between two events of a streamed answer.",
        BETWEEN_BOUNDS_S,
    ),
    Metric("xgen_requests_in_flight", Kind.GAUGE, Source.ROUTER, _STREAM, "Requests that an engine has."),
    Metric(
        "xgen_requests_waiting",
        Kind.GAUGE,
        Source.ROUTER,
        ("model",),
        "Requests that wait for an engine to be there.",
    ),
    Metric("xgen_models", Kind.GAUGE, Source.CONTROL, ("phase",), "Models, or pools of them, by phase."),
    Metric(
        "xgen_replicas_wanted", Kind.GAUGE, Source.CONTROL, ("model", "pool"), "Replicas there should be."
    ),
    Metric("xgen_replicas_ready", Kind.GAUGE, Source.CONTROL, ("model", "pool"), "Replicas that answer."),
    Metric(
        "xgen_nodes",
        Kind.GAUGE,
        Source.CONTROL,
        ("node", "state"),
        "1 for a node that is alive, by how it is there: joined, autoscaled or drained.",
    ),
    Metric(
        "xgen_node_drained",
        Kind.GAUGE,
        Source.CONTROL,
        ("node",),
        "1 for a node that an operator has drained, alive or not.",
    ),
    Metric(
        "xgen_failures",
        Kind.COUNTER,
        Source.CONTROL,
        ("model", "backend", "node", "failure"),
        "Engines that died or did not start, by class of failure.",
    ),
    Metric(
        "xgen_demotions",
        Kind.COUNTER,
        Source.CONTROL,
        ("model", "backend"),
        "Backends left out for a model, on a kind of node, after they failed on it.",
    ),
    Metric("xgen_leases", Kind.GAUGE, Source.NODE, ("node",), "Promises of memory to engines."),
    Metric(
        "xgen_leased_bytes",
        Kind.GAUGE,
        Source.NODE,
        ("node", "device"),
        "Memory promised, of each device; ram is the host's.",
    ),
    Metric("xgen_gpu_memory_bytes", Kind.GAUGE, Source.NODE, _GPU, "Memory of a GPU."),
    Metric(
        "xgen_gpu_memory_used_bytes", Kind.GAUGE, Source.NODE, _GPU, "Memory of a GPU in use, by whomever."
    ),
    Metric("xgen_gpu_utilization_ratio", Kind.GAUGE, Source.NODE, _GPU, "How busy a GPU is, 0 to 1."),
    Metric("xgen_gpu_temperature_celsius", Kind.GAUGE, Source.NODE, _GPU, "Temperature of a GPU."),
    Metric("xgen_gpu_power_watts", Kind.GAUGE, Source.NODE, _GPU, "What a GPU draws."),
    Metric("xgen_node_memory_bytes", Kind.GAUGE, Source.NODE, ("node",), "Memory of a node."),
    Metric(
        "xgen_node_memory_available_bytes",
        Kind.GAUGE,
        Source.NODE,
        ("node",),
        "Memory of a node that is free to use.",
    ),
    Metric(
        "xgen_node_cpu_ratio",
        Kind.GAUGE,
        Source.NODE,
        ("node",),
        "How busy the processors of a node are, 0 to 1.",
    ),
    Metric(
        "xgen_engine_slots", Kind.GAUGE, Source.ENGINE, _ENGINE, "Requests that an engine computes at once."
    ),
    Metric("xgen_engine_running", Kind.GAUGE, Source.ENGINE, _ENGINE, "Requests that it computes now."),
    Metric("xgen_engine_waiting", Kind.GAUGE, Source.ENGINE, _ENGINE, "Requests that it holds back."),
    Metric(
        "xgen_engine_cache_ratio",
        Kind.GAUGE,
        Source.ENGINE,
        _ENGINE,
        "Part of its KV cache in use, where it tells.",
    ),
    Metric(
        "xgen_engine_prompt_tokens",
        Kind.COUNTER,
        Source.ENGINE,
        _ENGINE,
        "Tokens of prompts it has read, where it tells.",
    ),
    Metric(
        "xgen_engine_generated_tokens",
        Kind.COUNTER,
        Source.ENGINE,
        _ENGINE,
        "Tokens it has written, where it tells.",
    ),
    Metric(
        "xgen_load_seconds",
        Kind.HISTOGRAM,
        Source.ENGINE,
        ("model", "backend", "node"),
        "From the start of an engine to its first computed token.",
        LOAD_BOUNDS_S,
    ),
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric: a counter's total, a gauge's level, or one observation of a histogram.

    ``labels`` are the values of the metric's labels, in their order.
    """

    name: str
    labels: tuple[str, ...]
    value: float
