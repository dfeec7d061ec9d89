"""Nodes that an autoscaler could start: imagined from what they declare, never as more than they are."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.placement.builders import (
    all_there,
    dense,
    h100,
    host,
    mi300x,
    node,
    rx7900xtx,
    smollm2,
    strix_halo,
)
from xgen_ray.hardware.types import NodeSnapshot
from xgen_ray.placement import AskedNode, Exclusion, NodeDemand, NodeType, Plan, node_demand, plan
from xgen_ray.placement.estimates import model_key
from xgen_ray.placement.sizes import GIB
from xgen_ray.placement.tags import tags_of
from xgen_ray.placement.types import Backend, EngineOptions

ANY = EngineOptions()
ON_GPU = EngineOptions(backend=Backend.LLAMA_SERVER_VULKAN)
LEAN = EngineOptions(backend=Backend.LLAMA_SERVER_VULKAN, context=2048, slots=1)
ON_CPU = EngineOptions(backend=Backend.LLAMA_SERVER_CPU)
AMD = NodeType(
    "amd",
    {"CPU": 8, "amd_rdna": 1, "gfx1100": 1},
    {"xgen-ray/ram": "64g", "xgen-ray/gpu-memory": "24g", "xgen-ray/gpu-type": "amd_rdna"},
    max_workers=3,
)
NVIDIA = NodeType(
    "nvidia",
    {"CPU": 8, "nvidia": 1, "sm_90": 1},
    {"xgen-ray/ram": "256g", "xgen-ray/gpu-memory": "80g", "xgen-ray/gpu-type": "nvidia"},
    max_workers=1,
)
CPU = NodeType("cpu", {"CPU": 4, "cpu_node": 1}, {"xgen-ray/ram": "16g"}, max_workers=2)


def asked(
    size_gib: float, options: EngineOptions = ANY, *types: NodeType, replicas: int = 1
) -> Mapping[str, int]:
    facts = dense(size_gib * 1.5)
    return node_demand(facts, options, [(one, one.max_workers) for one in types], replicas=replicas).counts


@pytest.mark.parametrize(
    ("size_gib", "options", "types", "wanted"),
    [
        (4.0, ANY, (CPU, AMD, NVIDIA), {"amd": 1}),
        (40.0, ANY, (CPU, AMD, NVIDIA), {"nvidia": 1}),
        (4.0, ON_GPU, (CPU, NVIDIA), {"nvidia": 1}),
        (4.0, EngineOptions(backend=Backend.LLAMA_SERVER_CPU), (CPU,), {"cpu": 1}),
        (4.0, EngineOptions(backend=Backend.LLAMA_SERVER_CUDA), (CPU, AMD), {}),
        (400.0, ANY, (CPU, AMD, NVIDIA), {}),
        (4.0, ANY, (), {}),
    ],
)
def test_the_type_that_would_hold_it_best_is_asked_for(
    size_gib: float, options: EngineOptions, types: tuple[NodeType, ...], wanted: dict[str, int]
) -> None:
    assert asked(size_gib, options, *types) == wanted


def test_as_many_nodes_as_the_replicas_need_and_may_be() -> None:
    assert asked(0.5, ANY, AMD, replicas=2) == {"amd": 1}, "both fit on one"
    assert asked(15.0, ON_GPU, AMD, replicas=2) == {"amd": 2}
    assert asked(15.0, ON_GPU, AMD, replicas=9) == {"amd": 3}, "all that there may be"


@pytest.mark.parametrize(
    ("first", "second", "types", "fresh", "shared"),
    [
        ((15.0, LEAN, 1), (8.0, LEAN, 1), (AMD,), {}, {"amd": 1}),
        ((15.0, LEAN, 1), (15.0, LEAN, 1), (AMD,), {"amd": 1}, {}),
        ((15.0, LEAN, 2), (8.0, LEAN, 3), (AMD,), {"amd": 1}, {"amd": 2}),
        ((15.0, LEAN, 1), (8.0, LEAN, 9), (AMD,), {"amd": 4}, {"amd": 1}),
        ((1.0, ON_CPU, 1), (1.0, ON_CPU, 1), (CPU,), {}, {"cpu": 1}),
        ((1.0, ON_CPU, 1), (4.0, ANY, 1), (CPU, AMD), {"amd": 1}, {}),
        ((40.0, ANY, 1), (4.0, ANY, 1), (AMD, NVIDIA), {"amd": 1}, {}),
        ((40.0, ANY, 1), (4.0, ANY, 1), (NVIDIA,), {}, {"nvidia": 1}),
    ],
)
def test_what_fits_beside_another_model_asks_for_no_node_of_its_own(
    first: tuple[float, EngineOptions, int],
    second: tuple[float, EngineOptions, int],
    types: tuple[NodeType, ...],
    fresh: dict[str, int],
    shared: dict[str, int],
) -> None:
    kinds = [(one, 6) for one in types]

    def demand(of: tuple[float, EngineOptions, int], asked: tuple[AskedNode, ...] = ()) -> NodeDemand:
        size_gib, options, replicas = of
        return node_demand(dense(size_gib * 1.5), options, kinds, replicas=replicas, asked=asked)

    asked = demand(first).fresh
    found = demand(second, asked)
    assert Counter(node.kind for node in found.fresh) == fresh
    assert Counter(node.kind for node in found.shared) == shared
    ids = [node.node_id for node in (*asked, *found.fresh)]
    assert len(set(ids)) == len(ids), "no two nodes have one name"
    assert {node.node_id for node in found.shared} <= {node.node_id for node in asked}
    assert sum(len(node.plans) for node in (*found.fresh, *found.shared)) == second[2]


def test_every_type_that_will_not_do_says_why() -> None:
    facts = dense(22.0)
    nothing = NodeType("bare", {"CPU": 4, "amd_rdna": 1})
    full = NodeType("full", AMD.resources, AMD.labels)
    seen = NodeType("seen", AMD.resources, AMD.labels)
    few = NodeType("few", AMD.resources, {**AMD.labels, "xgen-ray/backend-llama-server-cpu": "true"})
    types = [(CPU, 2), (nothing, 1), (full, 0), (seen, 1), (few, 1)]
    demand = node_demand(facts, ON_GPU, types, unfit={"seen": "its GPU was not found"})
    assert demand.counts == {}
    assert "xgen-ray/ram" in demand.reasons["bare"]
    assert "xgen-ray/gpu-memory" in demand.reasons["bare"]
    assert "may start" in demand.reasons["full"]
    assert demand.reasons["seen"] == "its GPU was not found"
    assert "declare" in demand.reasons["few"]
    assert "GPU" in demand.reasons["cpu"]


def test_a_backend_that_failed_on_such_a_node_is_left_out() -> None:
    facts = smollm2()
    failed = Exclusion(Backend.LLAMA_SERVER_VULKAN, "gfx1100", "it page-faulted", model_key(facts))
    assert node_demand(facts, ON_GPU, [(AMD, 1)], exclusions=[failed]).counts == {}
    assert node_demand(facts, ON_GPU, [(AMD, 1)]).counts == {"amd": 1}


def test_a_bundle_takes_a_node_whole_and_names_what_it_is() -> None:
    kind = NodeType("amd", {"CPU": 8, "gfx1100": 1, "memory": 2**36, "object_store_memory": 2**30, "GPU": 0})
    assert kind.bundle == {"CPU": 8, "gfx1100": 1}


MACHINES = {
    "card": node(rx7900xtx()),
    "cards": node(h100(0), h100(1)),
    "Instinct": node(mi300x()),
    "APU": node(strix_halo()),
    "small": node(on=host(16 * GIB, cpus=4)),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@settings(max_examples=40)
@given(size_gib=st.floats(0.1, 100.0))
def test_what_is_promised_by_a_nodes_own_tags_fits_there(machine: NodeSnapshot, size_gib: float) -> None:
    statuses = all_there(machine)
    tags = tags_of(machine, statuses, "one")
    resources = {**tags.resources, "CPU": float(machine.host.cpu_count)}
    kind = NodeType("one", resources, tags.labels)
    facts = dense(size_gib * 1.5)
    if node_demand(facts, ANY, [(kind, 1)]).counts:
        assert isinstance(plan(facts, ANY, machine, statuses), Plan)
