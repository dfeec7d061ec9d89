"""What is known of a node of the cluster, as data: as its owner tells it, or why its owner does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.placement.claims import Claim, Outstanding
from xgen_ray.placement.types import Backend, BackendStatus
from xgen_ray.serving.leases import EngineUse, Lease, LeaseState

# Labels that a node was started with. Without the second one nobody looked at it before Ray was started.
NAME_LABEL: Final = "xgen-ray/name"
GPU_TYPE_LABEL: Final = "xgen-ray/gpu-type"
# Ray gives this one to nodes that its autoscaler has started.
NODE_TYPE_LABEL: Final = "ray.io/node-group"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """A node of the cluster as Ray knows it. ``host`` is the address that others reach it by."""

    node_id: str
    name: str
    host: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def tagged(self) -> bool:
        """Whether Ray was started there with our tags; else it is a CPU node to us."""
        return GPU_TYPE_LABEL in self.labels

    @property
    def node_type(self) -> str:
        """What the autoscaler that started it calls its kind; empty for a node that was started by hand."""
        return self.labels.get(NODE_TYPE_LABEL, "")


@dataclass(frozen=True, slots=True)
class Versions:
    """What the node's owner runs on."""

    xgen_ray: str
    ray: str
    python: str


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """A lease without its plan. ``expires_in_s`` is None while somebody holds it."""

    lease_id: str
    app: str
    number: int
    model: str
    backend: Backend
    state: LeaseState
    released: bool
    claims: tuple[Claim, ...]
    threads: int
    use: EngineUse | None
    replica_id: str | None
    pid: int | None
    expires_in_s: float | None


@dataclass(frozen=True, slots=True)
class NodeState:
    """Everything that control needs of a node, at one moment. ``taken`` are GPUs that one lease has whole,
    ``leased`` those of all leases, once per lease. ``settings`` is the key of those that its owner was
    started with.
    """

    node: NodeIdentity
    snapshot: NodeSnapshot
    statuses: tuple[BackendStatus, ...]
    usage: NodeUsage
    leases: tuple[LeaseFacts, ...]
    outstanding: Outstanding
    taken: frozenset[str]
    leased: tuple[str, ...]
    versions: Versions
    settings: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What a lease was planned with, and what its engine really has where that is known."""

    planned: tuple[Claim, ...]
    use: EngineUse


def without_leases(state: NodeState) -> NodeState:
    """The node once nobody has anything there any more."""
    return replace(state, leases=(), outstanding=Outstanding(), taken=frozenset(), leased=())


def lease_facts(lease: Lease, now: float) -> LeaseFacts:
    holder = lease.holder
    return LeaseFacts(
        lease_id=lease.lease_id,
        app=lease.app,
        number=lease.number,
        model=lease.model,
        backend=lease.plan.backend,
        state=lease.state,
        released=lease.released,
        claims=lease.claims,
        threads=lease.threads,
        use=lease.use,
        replica_id=holder.replica_id if holder is not None else None,
        pid=holder.pid if holder is not None else None,
        expires_in_s=max(0.0, lease.expires_at - now) if holder is None else None,
    )
