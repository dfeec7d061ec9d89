"""What crosses HTTP and Ray between the API, control, the routers and the engines.

Management bodies are these models, unknown fields refused. Bodies on their way to an engine are not
here: they pass through untouched.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xgen_ray.placement.types import Backend, EngineOptions

# A name that is safe in a URL, a header, a log line and an application name.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"


class Wire(BaseModel):
    """Base of all bodies: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadRequest(Wire):
    """Load a model and serve it under ``name`` (by default, made from the file or repository name)."""

    model: str = Field(
        min_length=1, max_length=1024, description="A path, hf:org/name or hf:org/name:file.gguf"
    )
    name: str | None = Field(None, pattern=NAME_PATTERN)
    replicas: int = Field(1, ge=1, le=64)
    nodes: tuple[str, ...] | None = Field(
        None, min_length=1, max_length=1024, description="Only on these nodes, by name or id."
    )
    evict: Literal["never", "idle"] = Field(
        "never", description="What may be unloaded when there is no room: models that nobody uses."
    )
    options: EngineOptions = EngineOptions()


class Origin(StrEnum):
    """Who asked for a model: the configuration file or the API."""

    DECLARED = "declared"
    API = "api"


class Phase(StrEnum):
    """Where a model is on its way.

    RESOLVING (finding or downloading files) -> LOADING -> READY -> UNLOADING. RECOVERING: an engine
    died and is being started again. FAILED stays, with its reason, until it is loaded again or unloaded.
    """

    RESOLVING = "resolving"
    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    UNLOADING = "unloading"
    FAILED = "failed"


class Progress(Wire):
    """How far a load is. ``stage`` is one of resolve, download, start, load, canary."""

    stage: str
    message: str
    done_bytes: int | None = None
    total_bytes: int | None = None


class FailureReport(Wire):
    """A death in plain words. ``backend`` and ``node`` say which engine's; ``at`` is Unix seconds."""

    failure: str
    message: str
    backend: Backend | None = None
    node: str | None = None
    advice: str | None = None
    exit_code: int | None = None
    evidence: str | None = None
    log_tail: tuple[str, ...] = ()
    at: float


class ReplicaStatus(Wire):
    """One engine. ``pid`` is the engine's own process, ``url`` where it listens (for the router
    only); ``running`` and ``waiting`` are the requests it had when it was last asked.
    """

    replica_id: str
    node: str
    state: str
    pid: int | None = None
    url: str | None = None
    since: float
    running: int | None = None
    waiting: int | None = None
    progress: Progress | None = None


class FootprintLine(Wire):
    name: str
    size_bytes: int
    on_gpu: bool
    detail: str


class CandidateReport(Wire):
    """One backend as it was weighed for this model, on one node."""

    backend: Backend
    fits: bool
    reasons: tuple[str, ...]
    needs_bytes: int | None = None
    node: str | None = None


class AssignmentReport(Wire):
    """Where one replica goes, or would go."""

    node: str
    backend: Backend
    gpus: tuple[str, ...]
    footprint_bytes: int
    why: str


class VerdictReport(Wire):
    """What was said of one node: ``reasons`` are why not, or how it ranks. ``fits`` is None where nobody
    weighed the model, since enough other nodes looked better.
    """

    node: str
    fits: bool | None
    reasons: tuple[str, ...]
    candidates: tuple[CandidateReport, ...] = ()


class ExclusionReport(Wire):
    """A backend that failed on a model and is left out on nodes of this kind until an operator lifts it."""

    model: str
    backend: Backend
    node_kind: str
    reason: str


class PoolStatus(Wire):
    """A model's engines on one node."""

    pool: str
    node: str
    backend: Backend
    phase: str
    why: str
    gpus: tuple[str, ...]
    context: int
    slots: int
    replicas: int
    ready: int
    footprint_bytes: int


class PlanReport(Wire):
    """What would be done (``accepted``), or why nothing can be, without doing it.

    ``backend`` to ``argv`` are those of the first replica; ``assignments`` has all. ``evict`` are the idle
    models that would leave, or whose leaving would help a load with ``evict: idle``.
    """

    accepted: bool
    model: str
    message: str
    backend: Backend | None = None
    why: str | None = None
    gpus: tuple[str, ...] = ()
    options: dict[str, object] = {}
    footprint: tuple[FootprintLine, ...] = ()
    footprint_bytes: int | None = None
    candidates: tuple[CandidateReport, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    assignments: tuple[AssignmentReport, ...] = ()
    nodes: tuple[VerdictReport, ...] = ()
    evict: tuple[str, ...] = ()


class ModelStatus(Wire):
    """Everything an operator asks about one model. ``shortfall`` says why replicas have no place."""

    name: str
    model: str
    origin: Origin
    phase: Phase
    reason: str
    endpoint: str | None = None
    task: str | None = None
    format: str | None = None
    backend: Backend | None = None
    plan: PlanReport | None = None
    pools: tuple[PoolStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    wanted_replicas: int = 1
    shortfall: str | None = None
    progress: Progress | None = None
    failures: tuple[FailureReport, ...] = ()
    exclusions: tuple[ExclusionReport, ...] = ()
    since: float


class StatusReport(Wire):
    models: tuple[ModelStatus, ...]
    version: str


class LogPage(Wire):
    """Lines of an engine's output. Ask again with ``after=next`` to follow."""

    model: str
    replica_id: str | None
    lines: tuple[str, ...]
    next: int


class GPUReport(Wire):
    """One GPU as the page shows it; sizes in GB (10^9 is never used: 1 GB here is 2^30 bytes)."""

    id: int
    name: str
    type: str
    available: bool
    memory_gb: float | None
    memory: str | None
    node: str
    gpu_type: str
    uuid: str | None = None
    pci_bus_id: str | None = None
    gfx_version: str | None = None
    compute_capability: str | None = None
    integrated: bool | None = None
    unified_memory: bool = False
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    leased_bytes: int = 0
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None


class DetectorLine(Wire):
    detector: str
    found: int
    reason: str | None


class BackendReport(Wire):
    """Whether a backend can start on a node, and why not."""

    backend: Backend
    available: bool
    reason: str
    version: str | None = None
    devices: tuple[str, ...] = ()


class LeaseReport(Wire):
    """Memory of a node that a replica has or is promised."""

    lease: str
    model: str
    backend: Backend | None = None
    state: str
    devices: dict[str, int]
    threads: int


class NodeReport(Wire):
    """A node: hardware, engines, what is promised to whom. ``schedulable`` is False with a ``reason``."""

    node: str
    node_id: str = ""
    tagged: bool = True
    schedulable: bool = True
    reason: str = ""
    labels: dict[str, str] = {}
    leases: tuple[LeaseReport, ...] = ()
    models: tuple[str, ...] = ()
    gpus: tuple[GPUReport, ...]
    gpu_type: str
    recommended_backend: str
    available_backends: tuple[Backend, ...]
    backends: tuple[BackendReport, ...]
    detection_method: str
    detectors: tuple[DetectorLine, ...]
    cpu: str | None
    cpu_count: int
    memory_total_bytes: int
    memory_available_bytes: int
    cpu_percent: float | None = None
    versions: dict[str, str] = {}


class NodesReport(Wire):
    """Answer of ``GET /api/management/nodes``."""

    nodes: tuple[NodeReport, ...]


class LiftRequest(Wire):
    """Forget what was learned against backends of ``model``, or against one of them."""

    model: str = Field(min_length=1, max_length=1024)
    backend: Backend | None = None


class GPUsReport(Wire):
    """Answer of ``GET /api/management/gpus``; the first fields are the origin's, field for field."""

    success: bool
    gpus: tuple[GPUReport, ...]
    gpu_type: str
    recommended_backend: str
    available_backends: tuple[Backend, ...]
    detection_method: str
    nodes: tuple[NodeReport, ...]


class BackendsReport(Wire):
    nodes: dict[str, tuple[BackendReport, ...]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as ``/v1/models`` lists it. ``created`` is Unix seconds."""

    name: str
    created: int
    task: str
    ready: bool
    backend: str | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens, and the key that opens it. Never leaves the router."""

    url: str
    key: str
    replica_id: str
    model: str
    backend: str
