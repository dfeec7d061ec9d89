"""What is told of nodes, their GPUs and their engines."""

from pydantic import Field

from xgen_ray.placement.types import Backend
from xgen_ray.schema.wire import Wire


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
    used: dict[str, int] = Field(default_factory=dict)
    threads: int


class NodeReport(Wire):
    """A node: hardware, engines, what is promised to whom. ``schedulable`` is False with a ``reason``, as
    it is of a node that has been drained ``drained_since`` (Unix seconds).

    ``badges`` say in a word or two what it computes with, one for each kind: ``CUDA GPU``, ``ROCm GPU``,
    ``Metal GPU``, ``GPU``, or ``CPU only``. A node that gives no answer has none.
    """

    node: str
    node_id: str = ""
    tagged: bool = True
    schedulable: bool = True
    reason: str = ""
    drained_since: float | None = None
    labels: dict[str, str] = Field(default_factory=dict)
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
    versions: dict[str, str] = Field(default_factory=dict)


class NodesReport(Wire):
    """Answer of ``GET /api/management/nodes``. ``drained_away`` are the names that are drained and of which
    no node is there now.
    """

    nodes: tuple[NodeReport, ...]
    drained_away: tuple[str, ...] = ()


class DrainReport(Wire):
    """Answer of ``POST /api/management/drain``: since when the node takes nothing (None: it takes models),
    and the models that have an engine there.
    """

    node: str
    drained_since: float | None
    models: tuple[str, ...]


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
