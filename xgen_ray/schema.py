"""What crosses HTTP and Ray between the API, control, the routers and the engines.

Management bodies are these models, unknown fields refused. Bodies on their way to an engine are not
here: they pass through untouched.
"""

from dataclasses import dataclass
from enum import StrEnum

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
    """A death in plain words. ``at`` is Unix seconds."""

    failure: str
    message: str
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
    """One backend as it was weighed for this model."""

    backend: Backend
    fits: bool
    reasons: tuple[str, ...]
    needs_bytes: int | None = None


class PlanReport(Wire):
    """What would be done (``accepted``), or why nothing can be, without doing it."""

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


class ModelStatus(Wire):
    """Everything an operator asks about one model."""

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
    replicas: tuple[ReplicaStatus, ...] = ()
    wanted_replicas: int = 1
    progress: Progress | None = None
    failures: tuple[FailureReport, ...] = ()
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


class NodeReport(Wire):
    node: str
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
