"""What crosses HTTP and Ray between the API, control, the routers and the engines.

Management bodies are these models, unknown fields refused. Bodies on their way to an engine are not
here: they pass through untouched.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xgen_ray.models import default_name, parse_source
from xgen_ray.placement.types import Backend, EngineOptions

# A name that is safe in a URL, a header, a log line and an application name. ``@`` parts a model's name from
# that of one of its pools.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}$"
POOL_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,31}$"
LOADED_PATTERN = NAME_PATTERN.removesuffix("$") + f"(@{POOL_PATTERN[1:-1]})?$"


class Wire(BaseModel):
    """Base of all bodies: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scaling(Wire):
    """How the number of a model's replicas follows its load. Names that Ray Serve has mean what they mean
    there; "ongoing" are the requests that engines compute or hold back.
    """

    min_replicas: int = Field(1, ge=0, le=64, description="With 0 a model that nobody uses sleeps.")
    max_replicas: int = Field(1, ge=1, le=64, description="Never more, however much is asked.")
    target_ongoing_requests: float | None = Field(
        None, gt=0, le=4096, description="For each replica; by default as many as it computes at once."
    )
    upscale_delay_s: float = Field(
        5.0, ge=0, le=3600, description="For so long the load must ask for more before there are more."
    )
    downscale_delay_s: float = Field(
        60.0, ge=0, le=86_400, description="For so long it must ask for fewer before there are fewer."
    )
    keep_warm: int = Field(
        0, ge=0, le=64, description="So many more than the load needs while the model is in use."
    )
    cost: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Of a replica, by default that of its devices: a name's pools grow by speed per cost.",
    )
    ttl_s: float = Field(
        300.0, ge=0, le=30 * 86_400, description="With min_replicas 0: unused for so long, it sleeps."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, max_replicas only {self.max_replicas}")
        return self


class LoadRequest(Wire):
    """Load a model and serve it under ``name`` (by default, made from the file or repository name)."""

    model: str = Field(
        min_length=1, max_length=1024, description="A path, hf:org/name or hf:org/name:file.gguf"
    )
    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="What clients ask for; else made from the file's name."
    )
    pool: str | None = Field(
        None,
        pattern=POOL_PATTERN,
        description="One of several pools that serve this name; loaded, scaled and unloaded as name@pool.",
    )
    replicas: int = Field(1, ge=1, le=64, description="So many, whatever the load.")
    scaling: Scaling | None = Field(None, description="As many as the load asks for; instead of replicas.")
    nodes: tuple[str, ...] | None = Field(
        None, min_length=1, max_length=1024, description="Only on these nodes, by name or id."
    )
    evict: Literal["never", "idle"] = Field(
        "never", description="What may be unloaded when there is no room: models that nobody uses."
    )
    pinned: bool = Field(False, description="Nobody else's load may unload it or put it to sleep for room.")
    options: EngineOptions = Field(EngineOptions(), description="How the engine is to run it.")

    @property
    def loaded_as(self) -> str:
        """What it is loaded, scaled and unloaded as: the name that its model is served under, and the pool if
        it is one of several. Raises InvalidRequest for a source that cannot be read.
        """
        name = self.name or default_name(parse_source(self.model))
        return name if self.pool is None else f"{name}@{self.pool}"

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.scaling is not None and self.replicas != 1:
            raise ValueError("give either replicas, a fixed number, or scaling")
        return self


class ScaleRequest(Wire):
    """So many replicas of ``name`` from now on, or as many as its load asks for."""

    name: str = Field(pattern=LOADED_PATTERN)
    replicas: int | None = Field(None, ge=1, le=64)
    scaling: Scaling | None = None

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if (self.scaling is None) == (self.replicas is None):
            raise ValueError("give either replicas, a fixed number, or scaling")
        return self


class Origin(StrEnum):
    """Who asked for a model: the configuration file or the API."""

    DECLARED = "declared"
    API = "api"


class ChangeKind(StrEnum):
    """What applying a configuration does to a model. SCALE leaves its engines alone but for their number,
    RELOAD ends them and starts others, KEEP touches nothing.
    """

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"
    SCALE = "scale"
    KEEP = "keep"


class DeclaredChange(Wire):
    name: str
    kind: ChangeKind
    why: str


class Phase(StrEnum):
    """Where a model is on its way.

    RESOLVING (finding or downloading files) -> LOADING -> READY -> UNLOADING. RECOVERING: an engine
    died and is being started again. SLEEPING: nobody used it for long, it has no engine; a request wakes
    it. FAILED stays, with its reason, until it is loaded again or unloaded.
    """

    RESOLVING = "resolving"
    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"
    SLEEPING = "sleeping"
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
    only); ``running`` and ``waiting`` are the requests it had when it was last asked, at ``load_at``, and
    ``cache_used`` is the part of its cache that was in use, from 0 to 1, where it tells.
    """

    replica_id: str
    node: str
    state: str
    pid: int | None = None
    url: str | None = None
    since: float
    running: int | None = None
    waiting: int | None = None
    cache_used: float | None = None
    load_at: float | None = None
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


class FaultReport(Wire):
    """What is wrong with one of the options of a load, for a form to show beside its field."""

    option: str
    message: str


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


class EngineStatus(Wire):
    """One engine of a model and its place. ``app`` is its application in Ray Serve; while it starts again,
    it is there without being ``ready``.
    """

    app: str
    node: str
    backend: Backend
    phase: str
    why: str
    gpus: tuple[str, ...]
    context: int
    slots: int
    ready: bool
    footprint_bytes: int


class PlanReport(Wire):
    """What would be done (``accepted``), or why nothing can be, without doing it.

    ``backend`` to ``argv`` are those of the first replica; ``assignments`` has all. ``evict`` are the idle
    models that would leave, or whose leaving would help a load with ``evict: idle``. ``missing`` of the
    replicas have no place, and ``shortfall`` says why. ``faults`` are the options that a refusal blames.
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
    missing: int = 0
    shortfall: str | None = None
    format: str | None = None
    faults: tuple[FaultReport, ...] = ()


class AwaitedNodes(Wire):
    """Nodes that a model waits for: how many of each of the autoscaler's types, since when."""

    types: dict[str, int]
    since: float


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
    engines: tuple[EngineStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    wanted_replicas: int = 1
    shortfall: str | None = None
    awaited_nodes: AwaitedNodes | None = None
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
    """One GPU as the page shows it; sizes in GB (10^9 is never used: 1 GB here is 2^30 bytes). ``label``
    names it in a list: ``[0] AMD Radeon RX 7900 XTX (rocm, 24GB)``. ``shared_memory_bytes`` is the host's RAM
    that a GPU with unified memory may use beside its own.
    """

    id: int
    name: str
    type: str
    available: bool
    memory_gb: float | None
    memory: str | None
    node: str
    gpu_type: str
    label: str
    uuid: str | None = None
    pci_bus_id: str | None = None
    gfx_version: str | None = None
    compute_capability: str | None = None
    integrated: bool | None = None
    unified_memory: bool = False
    shared_memory_bytes: int | None = None
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
    """Memory of a node that a replica has or is promised: bytes by device. ``used`` is what its engine was
    seen to take.
    """

    lease: str
    model: str
    backend: Backend | None = None
    state: str
    devices: dict[str, int]
    used: dict[str, int] = {}
    threads: int


class NodeReport(Wire):
    """A node: hardware, engines, what is promised to whom. ``schedulable`` is False with a ``reason``.

    ``badges`` say in a word or two what it computes with, one for each kind: ``CUDA GPU``, ``ROCm GPU``,
    ``Metal GPU``, ``GPU``, or ``CPU only``. A node that gives no answer has none.
    """

    node: str
    node_id: str = ""
    tagged: bool = True
    schedulable: bool = True
    reason: str = ""
    labels: dict[str, str] = {}
    leases: tuple[LeaseReport, ...] = ()
    models: tuple[str, ...] = ()
    gpus: tuple[GPUReport, ...]
    badges: tuple[str, ...] = ()
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
    badges: tuple[str, ...] = ()
    nodes: tuple[NodeReport, ...]


class BackendsReport(Wire):
    nodes: dict[str, tuple[BackendReport, ...]]


class Outcome(StrEnum):
    """How a request ended on an engine.

    FULL: it took no more for now. NOT_READY: it was still loading, and another is asked. FAILED: it broke
    off, refused, or answered with a fault of its own. CLIENT_ERROR: it answered that the request was wrong.
    CANCELLED: the client left. UNSERVED: there was no engine for it, until it was refused or the client left.
    """

    OK = "ok"
    CLIENT_ERROR = "client_error"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FULL = "full"
    NOT_READY = "not_ready"
    UNSERVED = "unserved"

    @property
    def well(self) -> bool:
        """The engine did what it should."""
        return self not in _FAULTS


_FAULTS = frozenset({Outcome.FAILED, Outcome.NOT_READY})


class FigurePoint(Wire):
    """One step of the recent past. ``at`` is its end, in Unix seconds; ``ended`` leaves zeros out.

    ``first_*_s`` are the median and the 95th percentile of the time from the choice of an engine to the first
    byte of a stream, ``between_*_s`` of the mean time between two tokens of a stream; None if none ended.
    ``in_flight`` requests are on engines, ``waiting`` have none yet.
    """

    at: float
    ended: dict[Outcome, int] = {}
    tokens: int = 0
    first_p50_s: float | None = None
    first_p95_s: float | None = None
    between_p50_s: float | None = None
    between_p95_s: float | None = None
    in_flight: int = 0
    waiting: int = 0


class StreamFigures(Wire):
    """What has gone to one backend of one pool of a model since control started."""

    model: str
    pool: str
    backend: str
    ended: dict[Outcome, int]
    tokens: int
    in_flight: int


class FiguresReport(Wire):
    """Answer of ``GET /api/management/figures``: steps that are over, oldest first. One in which nothing
    happened is left out. ``started`` is when the counting began. Ask again with ``since`` the last ``at``.
    """

    now: float
    started: float
    step_s: float
    fleet: tuple[FigurePoint, ...]
    models: dict[str, tuple[FigurePoint, ...]]
    streams: tuple[StreamFigures, ...]


class TargetGroup(Wire):
    """Part of the answer of ``GET /api/management/metrics/targets``, in the words of Prometheus."""

    targets: tuple[str, ...]
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """One of a model's pools, as clients see it. ``name`` is empty for the one without a name;
    ``precision`` is the quantisation of its weights, or their type.
    """

    name: str
    backends: tuple[str, ...]
    precision: str | None
    format: str | None
    context: int | None
    phase: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as ``/v1/models`` lists it. ``created`` is Unix seconds."""

    name: str
    created: int
    task: str
    ready: bool
    backend: str | None
    context: int | None
    pools: tuple[PoolInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens, and the key that opens it. Never leaves the router.

    ``ticket`` tells requests on the same engine apart, ``why`` what decided for it.
    """

    url: str
    key: str
    replica_id: str
    model: str
    backend: str
    pool: str = ""
    ticket: int = field(default=0, compare=False)
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RequestHints:
    """What a request says that bears on the choice of its engine.

    ``session`` names what belongs together, ``pool`` the only pool that will do. ``body`` is the whole
    request. ``max_tokens`` bounds the answer. ``reads``: the model computes on the input, ``generates``: it
    also writes an answer, ``streamed``: which comes in events as it is written.
    """

    session: str | None = None
    pool: str | None = None
    body: bytes = field(default=b"", repr=False)
    max_tokens: int | None = None
    reads: bool = True
    generates: bool = True
    streamed: bool = True


NO_HINTS = RequestHints()
