"""Nodes that are not there yet: what an autoscaler could start, and which of it a model needs.

A node type is what Ray's autoscaler knows of it: the resources and labels that its nodes will have. Ours
say what the hardware is (``tags``), so a fresh node of the type can be imagined, and the same planner that
places on real nodes says whether a model would fit there, and why not.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Final

from xgen_ray.hardware.types import GPUDetectionResult, GPUInfo, GPUType, HostFacts, NodeSnapshot
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.claims import Outstanding
from xgen_ray.placement.estimates import Observation
from xgen_ray.placement.exclusions import Exclusion
from xgen_ray.placement.fleet import plan_fleet
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import MIB
from xgen_ray.placement.tags import LABEL_PREFIX, capability_resource, least_of_class
from xgen_ray.placement.types import BackendRow, BackendStatus, Engine, EngineDevice, EngineOptions, Plan
from xgen_ray.placement.verdicts import Assignment, FleetPlan, FleetRefusal
from xgen_ray.placement.views import NodeView, with_plan

# More nodes than this are not asked for at once for one model.
_MOST_AT_ONCE: Final = 8
_CARVE_OUT: Final = 512 * MIB
# Of a fresh machine's RAM.
_LEFT_BY_SYSTEM: Final = 0.9
_VENDORS: Final = (GPUType.NVIDIA, GPUType.AMD_RDNA, GPUType.AMD_CDNA, GPUType.APPLE_MPS)
_GFX: Final = re.compile(r"gfx[0-9a-f]{3,4}")
_SM: Final = re.compile(r"sm_(\d+)(\d)")
# Ray's own, which nodes of a type do not have alike.
_NOT_ASKED: Final = frozenset({"memory", "object_store_memory"})


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that the autoscaler can start, at most ``max_workers`` of it."""

    name: str
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    max_workers: int = 1

    @property
    def bundle(self) -> Mapping[str, float]:
        """A demand that takes a node of this type whole."""
        return {name: size for name, size in self.resources.items() if size > 0 and name not in _NOT_ASKED}


@dataclass(frozen=True, slots=True)
class AskedNode:
    """A node that is asked for and not there yet, and the plans of what shall be on it."""

    node_id: str
    kind: str
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class NodeDemand:
    """The ``fresh`` nodes that would hold what has no place, and those that are ``shared`` with others that
    ask for them already. Where none would, both are empty; ``reasons`` say of every type that was left out
    why.
    """

    reasons: Mapping[str, str]
    fresh: tuple[AskedNode, ...] = ()
    shared: tuple[AskedNode, ...] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many nodes of each type it takes, whoever asks for them."""
        return Counter(node.kind for node in (*self.fresh, *self.shared))


def node_demand(
    facts: ModelFacts,
    options: EngineOptions,
    types: Sequence[tuple[NodeType, int]],
    *,
    replicas: int = 1,
    asked: Sequence[AskedNode] = (),
    unfit: Mapping[str, str] | None = None,
    exclusions: Sequence[Exclusion] = (),
    observations: Sequence[Observation] = (),
    policy: PlacementPolicy = DEFAULT_POLICY,
) -> NodeDemand:
    """Which nodes to ask for, so that ``replicas`` of the model have a place. ``types`` come with how many
    more of each may be started; ``asked`` are the nodes that others ask for, ``unfit`` the types known not to
    do, with why.

    A node that others ask for is as good as a fresh one if it is of the type that would be chosen anyhow: no
    model goes to a worse place for company's sake.
    """

    def placed(views: Sequence[NodeView], number: int) -> FleetPlan | FleetRefusal:
        return plan_fleet(
            facts,
            options,
            views,
            replicas=number,
            exclusions=exclusions,
            observations=observations,
            policy=policy,
            partial=True,
            thorough=True,
        )

    views, reasons = _fresh(types, replicas, asked, unfit or {})
    best = placed(views, replicas) if views else None
    if not isinstance(best, FleetPlan):
        verdicts = () if best is None else best.nodes
        said = {verdict.name: verdict.message or "; ".join(verdict.reasons) for verdict in verdicts}
        return NodeDemand({**reasons, **said})
    kinds = {view.name: view for view in views}
    chosen = {one.node for one in best.assignments}
    beside = [_with_plans(kinds[one.kind], one) for one in asked if one.kind in chosen]
    company = placed(beside, len(best.assignments)) if beside else None
    shared = company.assignments if isinstance(company, FleetPlan) else ()
    missing = len(best.assignments) - len(shared)
    alone = placed(views, missing) if shared and missing else best
    fresh = alone.assignments if missing and isinstance(alone, FleetPlan) else ()
    return NodeDemand(reasons, _nodes(fresh), _nodes(shared))


def _fresh(
    types: Sequence[tuple[NodeType, int]],
    replicas: int,
    asked: Sequence[AskedNode],
    unfit: Mapping[str, str],
) -> tuple[list[NodeView], dict[str, str]]:
    """The nodes that may be asked for, imagined, and why there are none of the other types."""
    reasons: dict[str, str] = {}
    views: list[NodeView] = []
    others = {one.node_id for one in asked}
    for kind, left in types:
        if kind.name in unfit:
            reasons[kind.name] = unfit[kind.name]
        elif left <= 0:
            reasons[kind.name] = f"all {kind.max_workers} that the autoscaler may start are in use"
        elif (imagined := imagine(kind)) is None:
            reasons[kind.name] = _undeclared(kind)
        else:
            most = min(left, replicas, _MOST_AT_ONCE)
            ids = (f"{kind.name}#{number}" for number in count())
            mine = islice((one for one in ids if one not in others), most)
            views += [replace(imagined, node_id=node_id) for node_id in mine]
    return views, reasons


def _with_plans(view: NodeView, asked: AskedNode) -> NodeView:
    for plan in asked.plans:
        view = with_plan(view, plan)
    return replace(view, node_id=asked.node_id)


def _nodes(assignments: Sequence[Assignment]) -> tuple[AskedNode, ...]:
    kinds = {one.node_id: one.node for one in assignments}
    return tuple(
        AskedNode(node_id, kind, tuple(one.plan for one in assignments if one.node_id == node_id))
        for node_id, kind in kinds.items()
    )


def imagine(kind: NodeType) -> NodeView | None:
    """A fresh node of the type, with nothing on it. None where it does not say how much memory there is."""
    ram = _ram(kind)
    gpus = _gpus(kind)
    if ram is None or gpus is None:
        return None
    host = HostFacts(
        hostname=kind.name,
        os="Linux",
        machine="x86_64",
        cpu_model=None,
        cpu_count=max(1, int(kind.resources.get("CPU", 1))),
        cpu_flags=frozenset(),
        memory_total_bytes=ram,
        memory_available_bytes=int(ram * _LEFT_BY_SYSTEM),
        memlock_limit_bytes=None,
    )
    detection = GPUDetectionResult(bool(gpus), gpus, gpus[0] if gpus else None, "declared", ())
    return NodeView(
        node_id=kind.name,
        name=kind.name,
        snapshot=NodeSnapshot(host, detection, 0.0),
        statuses=tuple(_status(row, kind, gpus) for row in BACKENDS.values()),
        usage=None,
        outstanding=Outstanding(),
        taken=frozenset(),
        has_files=None,
        can_fetch=True,
        tagged=True,
        node_type=kind.name,
    )


def _undeclared(kind: NodeType) -> str:
    missing = [] if _ram(kind) is not None else [f"{LABEL_PREFIX}ram"]
    if _vendor(kind) is not None and _label(kind, "gpu-memory") is None:
        missing.append(f"{LABEL_PREFIX}gpu-memory")
    return f"how large its nodes are is not known: it declares no label {' and no label '.join(missing)}"


def _label(kind: NodeType, name: str) -> str | None:
    return kind.labels.get(LABEL_PREFIX + name)


def _ram(kind: NodeType) -> int | None:
    if (label := _label(kind, "ram")) is not None:
        return least_of_class(label)
    memory = kind.resources.get("memory")
    return int(memory) if memory else None


def _gpus(kind: NodeType) -> tuple[GPUInfo, ...] | None:
    """The GPUs of the type's primary kind: how large others are, no label says. None if not even of those."""
    vendor = _vendor(kind)
    if vendor is None:
        return ()
    size = least_of_class(_label(kind, "gpu-memory") or "")
    if size is None:
        return None
    gfx = _first(kind, "gfx", _GFX) if vendor is not GPUType.NVIDIA else None
    sm = _first(kind, "compute-capability", _SM) if vendor is GPUType.NVIDIA else None
    count = min(int(kind.resources.get(name, 1e9)) for name in (vendor.value, gfx or sm) if name)
    integrated = _label(kind, "gpu-integrated") == "true"
    return tuple(
        GPUInfo(
            gpu_type=vendor,
            device_index=number,
            device_name=f"{vendor.value} GPU of a {kind.name} node",
            memory_total_bytes=_CARVE_OUT if integrated else size,
            shared_memory_total_bytes=max(0, size - _CARVE_OUT) if integrated else None,
            compute_capability=_SM.sub(r"\1.\2", sm) if sm else None,
            gfx_version=gfx,
            uuid=f"{vendor.value}-{number}",
            integrated=integrated,
        )
        for number in range(count)
    )


def _vendor(kind: NodeType) -> GPUType | None:
    there = [vendor for vendor in _VENDORS if kind.resources.get(vendor.value, 0) >= 1]
    primary = _label(kind, "gpu-type")
    return next((vendor for vendor in there if vendor.value == primary), there[0] if there else None)


def _first(kind: NodeType, label: str, pattern: re.Pattern[str]) -> str | None:
    """The primary GPU's gfx id or compute capability, as the resource that counts its like is called."""
    told = _label(kind, label)
    if told is not None:
        return capability_resource(told) or told
    return next((name for name in kind.resources if pattern.fullmatch(name)), None)


def _status(row: BackendRow, kind: NodeType, gpus: Sequence[GPUInfo]) -> BackendStatus:
    """The engine as the type's labels have it. Where they name none, all are taken to be there."""
    declared = {name for name in kind.labels if name.startswith(f"{LABEL_PREFIX}backend-")}
    if declared and f"{LABEL_PREFIX}backend-{row.backend}" not in declared:
        return BackendStatus(row.backend, False, f"nodes of the type {kind.name} do not declare it")
    fitting = [gpu for gpu in gpus if gpu.gpu_type in row.gpu_types]
    devices = tuple(
        EngineDevice(f"{row.device_prefix}{order}", gpu.device_name, _listed(gpu), _listed(gpu))
        for order, gpu in enumerate(fitting)
        if row.engine is Engine.LLAMA_SERVER
    )
    return BackendStatus(row.backend, True, "declared", command=(row.backend.value,), devices=devices)


def _listed(gpu: GPUInfo) -> int:
    return (gpu.memory_total_bytes or 0) + (gpu.shared_memory_total_bytes or 0)
