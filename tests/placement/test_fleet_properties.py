"""What holds for every fleet and every sequence of loads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.placement.builders import (
    all_there,
    amd,
    dense,
    embedder,
    gb10,
    h100,
    host,
    igpu,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    usage,
)
from tests.placement.fleets import view
from xgen_ray.hardware.types import GPUInfo
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    RAM,
    Claim,
    EngineOptions,
    FleetPlan,
    FleetRefusal,
    IdleModel,
    NodeView,
    PlacementPolicy,
    budgets,
    claims_of,
    gpu_key,
    plan_fleet,
)
from xgen_ray.placement.sizes import GIB
from xgen_ray.placement.views import with_plan, without_models

GPUS = st.sampled_from(
    [
        (),
        (rtx4090(0),),
        (h100(0), h100(1)),
        (strix_halo(),),
        (gb10(),),
        (rx7900xtx(0), igpu(1)),
        (rtx4090(0), nvidia(1, "NVIDIA GeForce RTX 3060", 12 * GIB)),
        (rtx4090(0), amd(0, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * GIB)),
        (h100(0), h100(1), h100(2), h100(3)),
    ]
)
FACTS = st.sampled_from(
    [
        smollm2(),
        dense(8),
        dense(32),
        dense(70),
        embedder(),
        dense(1, 16, model_format=ModelFormat.SAFETENSORS),
        dense(8, 16, model_format=ModelFormat.SAFETENSORS),
        dense(70, 16, model_format=ModelFormat.SAFETENSORS),
    ]
)
OPTIONS = st.sampled_from(
    [
        EngineOptions(),
        EngineOptions(),
        EngineOptions(context=4096, slots=2),
        EngineOptions(split_mode="row"),
        EngineOptions(split_mode="layer"),
        EngineOptions(gpus=(0,)),
        EngineOptions(gpus=()),
        EngineOptions(tensor_parallel_size=2),
        EngineOptions(gpu_layers=20),
        EngineOptions(spread=True),
    ]
)


@st.composite
def boxes(draw: st.DrawFn, name: str) -> NodeView:
    gpus: tuple[GPUInfo, ...] = draw(GPUS)
    ram = draw(st.sampled_from([256, 64, 16])) * GIB
    machine = host(
        ram, available=ram * draw(st.integers(1, 9)) // 10, cpus=draw(st.sampled_from([2, 16, 64]))
    )
    free = None
    if draw(st.booleans()):
        free = [(gpu.memory_total_bytes or 0) * draw(st.integers(0, 10)) // 10 for gpu in gpus]
    has = draw(st.sampled_from([True, True, None, False]))
    box = view(name, *gpus, on=machine, free=free, has_files=has, tagged=draw(st.integers(0, 5)) > 0)
    return replace(box, can_fetch=draw(st.booleans()), schedulable=draw(st.integers(0, 8)) > 0)


@st.composite
def fleets(draw: st.DrawFn, most: int = 8) -> tuple[NodeView, ...]:
    return tuple(draw(boxes(f"n{number}")) for number in range(draw(st.integers(1, most))))


def free_of(box: NodeView) -> dict[str, int]:
    """What a model may use of each device before anything is placed, without any engine's own word."""
    *gpus, ram = budgets(box.snapshot, box.usage)
    names = [gpu_key(gpu) for gpu in box.snapshot.detection.gpus]
    return {name: budget.free_bytes for name, budget in zip(names, gpus, strict=True)} | {RAM: ram.free_bytes}


@settings(max_examples=35)
@given(fleets(), st.lists(st.tuples(FACTS, OPTIONS, st.integers(1, 3)), min_size=2, max_size=8))
def test_no_device_is_ever_promised_twice(
    fleet: tuple[NodeView, ...], loads: Sequence[tuple[ModelFacts, EngineOptions, int]]
) -> None:
    now = {box.node_id: box for box in fleet}
    promised: Counter[tuple[str, str]] = Counter()
    users: Counter[tuple[str, str]] = Counter()
    whole: set[tuple[str, str]] = set()
    for facts, options, replicas in loads:
        answer = plan_fleet(facts, options, list(now.values()), replicas=replicas)
        event(type(answer).__name__)
        if isinstance(answer, FleetRefusal):
            assert {item.node_id for item in answer.nodes} == set(now)
            assert all(item.reasons and item.fits is not True for item in answer.nodes) or replicas > 1
            continue
        assert len(answer.assignments) == replicas
        for item in answer.assignments:
            box = now[item.node_id] = with_plan(now[item.node_id], item.plan)
            assert box.schedulable
            assert box.has_files is not False or box.can_fetch
            assert box.tagged or not item.plan.options.gpus
            for claim in claims_of(item.plan):
                at = (item.node_id, claim.device)
                promised[at] += claim.size_bytes
                if claim.device != RAM:
                    users[at] += 1
                    whole |= {at} if claim.exclusive else set()
    for box in fleet:
        for device, free in free_of(box).items():
            assert promised[box.node_id, device] <= free, device
    assert all(users[at] == 1 for at in whole)


@settings(max_examples=40)
@given(st.data(), fleets(5), FACTS, OPTIONS, st.integers(1, 3), st.booleans())
def test_the_order_of_the_nodes_is_nothing(
    data: st.DataObject,
    fleet: tuple[NodeView, ...],
    facts: ModelFacts,
    options: EngineOptions,
    replicas: int,
    spread: bool,
) -> None:
    # Two at a time, so that promise decides what is weighed.
    policy = PlacementPolicy(nodes_weighed=data.draw(st.sampled_from([2, 16])))
    answer = plan_fleet(facts, options, fleet, replicas=replicas, spread=spread, policy=policy)
    shuffled = data.draw(st.permutations(fleet))
    assert plan_fleet(facts, options, shuffled, replicas=replicas, spread=spread, policy=policy) == answer


@settings(max_examples=40)
@given(fleets(6), FACTS, OPTIONS)
def test_weighing_by_promise_finds_a_place_whenever_there_is_one(
    fleet: tuple[NodeView, ...], facts: ModelFacts, options: EngineOptions
) -> None:
    few = plan_fleet(facts, options, fleet, policy=PlacementPolicy(nodes_weighed=1))
    every = plan_fleet(facts, options, fleet, thorough=True)
    event(type(every).__name__)
    assert type(few) is type(every)


@settings(max_examples=40)
@given(fleets(6), FACTS, OPTIONS, st.booleans())
def test_what_is_shared_between_nodes_changes_no_answer(
    fleet: tuple[NodeView, ...], facts: ModelFacts, options: EngineOptions, spread: bool
) -> None:
    """The reference: every node is weighed as if it were alone in the world, and the best one is taken."""
    alone = [plan_fleet(facts, options, [box], spread=spread) for box in fleet]
    fitting = [
        (verdict.score, verdict.name, answer.assignments[0])
        for answer in alone
        if isinstance(answer, FleetPlan)
        for verdict in answer.nodes
        if verdict.score is not None
    ]
    together = plan_fleet(facts, options, fleet, spread=spread, thorough=True)
    event(f"{len(fitting)} of {len(fleet)} nodes")
    if not fitting:
        assert isinstance(together, FleetRefusal)
        assert together.nodes == tuple(answer.nodes[0] for answer in alone)
        return
    best = min(fitting, key=lambda item: item[:2])[2]
    assert isinstance(together, FleetPlan)
    (chosen,) = together.assignments
    assert (chosen.node, chosen.plan) == (best.node, best.plan)


def larger(box: NodeView, ram: int, extra: int) -> NodeView:
    gpus = tuple(
        replace(
            gpu, memory_total_bytes=None if gpu.memory_total_bytes is None else gpu.memory_total_bytes + extra
        )
        for gpu in box.snapshot.detection.gpus
    )
    old = box.snapshot.host
    machine = replace(
        old,
        memory_total_bytes=old.memory_total_bytes + ram,
        memory_available_bytes=old.memory_available_bytes + ram,
    )
    snapshot = node(*gpus, on=machine)
    now = None
    if box.usage is not None:
        free = [(live.memory_free_bytes or 0) + extra for live in box.usage.gpus]
        now = usage(snapshot, free, available=box.usage.memory_available_bytes + ram)
    return replace(box, snapshot=snapshot, statuses=all_there(snapshot), usage=now)


@settings(max_examples=35)
@given(st.data(), fleets(4), FACTS, OPTIONS, st.integers(0, 64), st.integers(0, 64))
def test_more_memory_never_turns_a_plan_into_a_refusal(
    data: st.DataObject,
    fleet: tuple[NodeView, ...],
    facts: ModelFacts,
    options: EngineOptions,
    ram: int,
    extra: int,
) -> None:
    first = plan_fleet(facts, options, fleet)
    event(type(first).__name__)
    if isinstance(first, FleetRefusal):
        return
    at = data.draw(st.integers(0, len(fleet) - 1))
    more = [larger(box, ram * GIB, extra * GIB) if place == at else box for place, box in enumerate(fleet)]
    second = plan_fleet(facts, options, more)
    assert isinstance(second, FleetPlan), second.message


@st.composite
def crowded(draw: st.DrawFn, name: str) -> NodeView:
    """A node whose cards are nearly full of idle models."""
    gpus = draw(st.sampled_from([(rtx4090(0),), (rtx4090(0), rtx4090(1)), (h100(0),)]))
    free = [draw(st.integers(0, 3)) * GIB for _ in gpus]
    box = view(name, *gpus, on=host(64 * GIB, available=8 * GIB), free=free)
    keys = [gpu_key(gpu) for gpu in box.snapshot.detection.gpus]
    idle = []
    for number in range(draw(st.integers(0, 5))):
        claims = (Claim(draw(st.sampled_from(keys)), draw(st.integers(1, 12)) * GIB), Claim(RAM, GIB))
        idle.append(IdleModel(f"{name}-m{number}", float(draw(st.integers(0, 900))), claims))
    return replace(box, idle_models=tuple(idle), leased=tuple(c.device for i in idle for c in i.claims[:1]))


@settings(max_examples=30)
@given(
    st.tuples(crowded("a"), crowded("b")),
    st.sampled_from([dense(8), dense(24), dense(32)]),
    st.sampled_from([EngineOptions(gpus=(0,)), EngineOptions(), EngineOptions(context=8192, slots=4)]),
)
def test_what_is_to_be_unloaded_is_enough_and_no_more_than_that(
    fleet: tuple[NodeView, NodeView], facts: ModelFacts, options: EngineOptions
) -> None:
    answer = plan_fleet(facts, options, fleet)
    if isinstance(answer, FleetPlan):
        assert plan_fleet(facts, options, fleet, evict_idle=True) == answer
        return
    evict = answer.would_fit_without
    event(f"unload {len(evict)}")
    planned = plan_fleet(facts, options, fleet, evict_idle=True)
    if not evict:
        assert planned == answer
        bare = [without_models(box, box.idle_models) for box in fleet]
        assert isinstance(plan_fleet(facts, options, bare), FleetRefusal)
        return
    assert isinstance(planned, FleetPlan)
    assert planned.evict == evict
    (box,) = [box for box in fleet if evict[0] in {item.name for item in box.idle_models}]
    idle = {item.name: item for item in box.idle_models}
    enough = without_models(box, [idle[name] for name in evict])
    assert isinstance(plan_fleet(facts, options, [enough]), FleetPlan)
    for other in fleet:
        for fewer in combinations(other.idle_models, len(evict) - 1):
            left = without_models(other, fewer)
            assert isinstance(plan_fleet(facts, options, [replace(left, idle_models=())]), FleetRefusal)
