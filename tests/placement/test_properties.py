"""What holds for every node, model and wish: drawn at random, checked against the inputs."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.placement.builders import (
    all_there,
    amd,
    dense,
    embedder,
    h100,
    host,
    igpu,
    mi300x,
    node,
    nvidia,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    usage,
)
from xgen_ray.hardware.types import GPUInfo, NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts, ModelFormat
from xgen_ray.placement import (
    BACKENDS,
    DEFAULT_POLICY,
    Backend,
    BackendStatus,
    Engine,
    EngineOptions,
    Plan,
    Refusal,
    available_backends,
    plan,
)
from xgen_ray.placement.budget import gpu_budget, host_budget
from xgen_ray.placement.devices import usable_gpus
from xgen_ray.placement.footprint import FURTHER_CACHE
from xgen_ray.placement.sizes import GIB, MIB

EXAMPLES = settings(max_examples=70)
GPUS = st.sampled_from(
    [
        (),
        (rtx4090(0),),
        (h100(0), h100(1)),
        (strix_halo(),),
        (mi300x(0),),
        (rx7900xtx(0), igpu(1)),
        (rtx4090(0), nvidia(1, "NVIDIA GeForce RTX 3060", 12 * GIB)),
        (rtx4090(0), amd(0, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * GIB)),
        (rx7900xtx(0), rx7900xtx(1), rx7900xtx(2)),
    ]
)
SAFETENSORS = ModelFormat.SAFETENSORS
FACTS = st.sampled_from(
    [
        smollm2(),
        dense(8),
        dense(32),
        dense(70),
        dense(180),
        embedder(),
        smollm2(context_length=None, kv_heads=None, layer_count=None),
        dense(1, 16, model_format=SAFETENSORS),
        dense(8, 16, model_format=SAFETENSORS),
        dense(70, 16, model_format=SAFETENSORS),
    ]
)


@st.composite
def options(draw: st.DrawFn) -> EngineOptions:
    """Wishes of all kinds; few at a time, as people have them, so that many can be granted."""
    pool: Mapping[str, st.SearchStrategy[object]] = {
        "backend": st.sampled_from(Backend),
        "context": st.one_of(st.integers(1, 8192), st.integers(1, 140_000)),
        "slots": st.integers(1, 16),
        "gpus": st.sampled_from([(), (0,), (0,), (1,), (0, 1), (1, 0), (5,)]),
        "split_mode": st.sampled_from(["none", "layer", "row"]),
        "main_gpu": st.integers(0, 2),
        "gpu_layers": st.integers(0, 90),
        "batch": st.sampled_from([128, 2048]),
        "ubatch": st.sampled_from([128, 1024]),
        "threads": st.integers(1, 20),
        "kv_cache_type": st.sampled_from(["f16", "q8_0"]),
        "flash_attention": st.booleans(),
        "memory_lock": st.booleans(),
        "tensor_parallel_size": st.integers(1, 4),
        "gpu_memory_utilization": st.floats(0.05, 1.0),
    }
    count = draw(st.sampled_from([0, 0, 1, 1, 1, 2, 3]))
    names = draw(st.lists(st.sampled_from(sorted(pool)), min_size=count, max_size=count, unique=True))
    return EngineOptions.model_validate({name: draw(pool[name]) for name in names})


@st.composite
def nodes(draw: st.DrawFn) -> tuple[NodeSnapshot, NodeUsage | None]:
    ram = draw(st.sampled_from([256, 64, 16, 4])) * GIB
    machine = host(
        ram,
        available=ram - draw(st.integers(0, ram)),
        cpus=draw(st.integers(1, 32)),
        memlock=draw(st.sampled_from([64 * 1024, 512 * GIB])),
    )
    snapshot = node(*draw(GPUS), on=machine)
    if draw(st.booleans()):
        return snapshot, None
    totals = [gpu.memory_total_bytes or 0 for gpu in snapshot.detection.gpus]
    left = [total - draw(st.integers(0, total)) for total in totals]
    return snapshot, usage(snapshot, left)


@st.composite
def installed(draw: st.DrawFn, snapshot: NodeSnapshot) -> tuple[BackendStatus, ...]:
    everything = all_there(snapshot)
    absent = draw(st.sets(st.sampled_from(Backend), max_size=4))
    return tuple(
        BackendStatus(status.backend, available=False, reason="not found")
        if status.backend in absent
        else status
        for status in everything
    )


@EXAMPLES
@given(st.data(), FACTS, options(), nodes())
def test_a_plan_never_takes_more_than_there_is(
    data: st.DataObject, facts: ModelFacts, wish: EngineOptions, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    snapshot, now = drawn
    statuses = data.draw(installed(snapshot))
    made = plan(facts, wish, snapshot, statuses, usage=now)
    event(type(made).__name__)
    if isinstance(made, Refusal):
        return
    row = BACKENDS[made.backend]
    merged = {status.backend: status for status in available_backends(snapshot, statuses)}
    assert merged[made.backend].available
    ram = host_budget(snapshot.host, now)
    usable, _ = usable_gpus(row, snapshot.detection.gpus, merged[made.backend].devices, DEFAULT_POLICY)
    budgets = {item.gpu.uuid: gpu_budget(item.gpu, ram, usage=now, device=item.device) for item in usable}
    chosen = [budgets[gpu.uuid] for gpu in made.options.gpus]
    free = sum(budget.free_bytes for budget in chosen)
    bill = made.footprint
    assert bill.gpu_bytes <= free
    assert bill.host_bytes <= ram.free_bytes
    # Memory that a GPU shares with the system is there once.
    if row.engine is not Engine.VLLM:
        own = sum(budget.free_bytes - budget.shared_bytes for budget in chosen)
        assert max(0, bill.gpu_bytes - own) + bill.host_bytes <= ram.free_bytes or len(chosen) > 1
    else:
        least = sum(item.size_bytes for item in bill.items if item.on_gpu and item.name != FURTHER_CACHE)
        part = made.options.gpu_memory_utilization or 0
        assert least <= part * sum(budget.total_bytes or 0 for budget in chosen)
    assert made.options.threads <= snapshot.host.cpu_count
    assert made.options.ubatch <= made.options.batch
    assert facts.context_length is None or made.options.context <= facts.context_length


@EXAMPLES
@given(st.data(), FACTS, options(), nodes())
def test_every_answer_explains_itself(
    data: st.DataObject, facts: ModelFacts, wish: EngineOptions, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    snapshot, now = drawn
    statuses = data.draw(installed(snapshot))
    made = plan(facts, wish, snapshot, statuses, usage=now)
    assert [item.backend for item in made.candidates].count(Backend.VLLM_CPU) == 1
    assert {item.backend for item in made.candidates} == set(Backend)
    chosen = made.backend if isinstance(made, Plan) else None
    for item in made.candidates:
        assert bool(item.reasons) is (item.backend is not chosen)
        assert all(reason.strip() for reason in item.reasons)
    if isinstance(made, Refusal):
        assert made.message.endswith(".")
        assert not any(item.fits for item in made.candidates)
        return
    assert made.why
    assert facts.format in BACKENDS[made.backend].formats
    if wish.backend is not None:
        assert made.backend is wish.backend
    for name in ("context", "slots", "batch", "threads", "kv_cache_type", "flash_attention"):
        if getattr(wish, name) is not None:
            assert getattr(made.options, name) == getattr(wish, name)
    if wish.gpus is not None and wish.split_mode != "none":
        assert [snapshot.detection.gpus[index] for index in wish.gpus if isinstance(index, int)] == list(
            made.options.gpus
        ) or wish.gpu_layers == 0


@EXAMPLES
@given(st.data(), FACTS, options(), nodes())
def test_the_same_question_has_the_same_answer_in_any_order(
    data: st.DataObject, facts: ModelFacts, wish: EngineOptions, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    snapshot, now = drawn
    statuses = data.draw(installed(snapshot))
    shuffled = data.draw(st.permutations(statuses))
    answer = plan(facts, wish, snapshot, statuses, usage=now)
    assert plan(facts, wish, snapshot, shuffled, usage=now) == answer
    assert plan(facts, wish, snapshot, statuses, usage=now) == answer


@EXAMPLES
@given(st.data(), FACTS, options(), nodes())
def test_what_is_said_of_each_gpu_is_what_was_decided(
    data: st.DataObject, facts: ModelFacts, wish: EngineOptions, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    snapshot, now = drawn
    statuses = data.draw(installed(snapshot))
    told = plan(facts, wish, snapshot, statuses, usage=now, per_gpu=True)
    quiet = tuple(replace(item, gpus=()) for item in told.candidates)
    assert replace(told, candidates=quiet) == plan(facts, wish, snapshot, statuses, usage=now)
    gpus = snapshot.detection.gpus
    for item in told.candidates:
        event(f"{item.backend}: {len(item.gpus)} GPUs")
        assert [gpu.position for gpu in item.gpus] in ([], list(range(len(gpus))))
        assert all(gpu.reason and gpu.fits >= gpu.chosen for gpu in item.gpus)
        assert item.fits or not any(gpu.fits for gpu in item.gpus)
        if isinstance(told, Plan):
            chosen = {gpus[gpu.position] for gpu in item.gpus if gpu.chosen}
            assert chosen == (set(told.options.gpus) if item.backend is told.backend else set())


@EXAMPLES
@given(st.data(), FACTS, options(), nodes())
def test_exclusions_are_kept(
    data: st.DataObject, facts: ModelFacts, wish: EngineOptions, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    snapshot, now = drawn
    out = data.draw(st.sets(st.sampled_from(Backend), min_size=1))
    made = plan(
        facts,
        wish,
        snapshot,
        all_there(snapshot),
        usage=now,
        exclusions=dict.fromkeys(out, "it crashed here"),
    )
    if isinstance(made, Plan):
        assert made.backend not in out
    able = {backend for backend in out if facts.format in BACKENDS[backend].formats}
    for item in made.candidates:
        if item.backend in able and wish.backend in (None, item.backend):
            assert item.reasons == ("excluded: it crashed here",)


def larger(snapshot: NodeSnapshot, gpu: int | None, ram: int, extra: int) -> NodeSnapshot:
    """The same node with more memory on one GPU, or more RAM."""
    gpus: list[GPUInfo] = list(snapshot.detection.gpus)
    if gpu is not None and gpu < len(gpus):
        gpus[gpu] = replace(gpus[gpu], memory_total_bytes=(gpus[gpu].memory_total_bytes or 0) + extra)
    machine = replace(
        snapshot.host,
        memory_total_bytes=snapshot.host.memory_total_bytes + ram,
        memory_available_bytes=snapshot.host.memory_available_bytes + ram,
    )
    return replace(snapshot, host=machine, detection=replace(snapshot.detection, gpus=tuple(gpus)))


@settings(max_examples=120)
@given(
    st.data(),
    FACTS,
    options(),
    nodes(),
    st.integers(0, 2),
    st.integers(0, 64 * GIB),
    st.integers(0, 64 * GIB),
)
def test_more_memory_never_turns_a_plan_into_a_refusal(
    data: st.DataObject,
    facts: ModelFacts,
    wish: EngineOptions,
    drawn: tuple[NodeSnapshot, NodeUsage | None],
    gpu: int,
    ram: int,
    extra: int,
) -> None:
    snapshot, now = drawn
    absent = data.draw(st.sets(st.sampled_from(Backend), max_size=4))

    def answer(where: NodeSnapshot, figures: NodeUsage | None) -> Plan | Refusal:
        statuses = [status for status in all_there(where) if status.backend not in absent]
        return plan(facts, wish, where, statuses, usage=figures)

    first = answer(snapshot, now)
    event(type(first).__name__)
    if isinstance(first, Refusal):
        return
    more = larger(snapshot, gpu, ram, extra)
    figures = now
    if now is not None:
        gpus = list(now.gpus)
        if gpu < len(gpus):
            gpus[gpu] = replace(gpus[gpu], memory_free_bytes=(gpus[gpu].memory_free_bytes or 0) + extra)
        figures = replace(now, gpus=tuple(gpus), memory_available_bytes=now.memory_available_bytes + ram)
    second = answer(more, figures)
    assert isinstance(second, Plan), second.message


@settings(max_examples=40)
@given(FACTS, nodes())
def test_a_plan_can_be_asked_for_again_by_its_own_choices(
    facts: ModelFacts, drawn: tuple[NodeSnapshot, NodeUsage | None]
) -> None:
    """Naming what placement chose by itself gives the same placement."""
    snapshot, now = drawn
    made = plan(facts, EngineOptions(), snapshot, all_there(snapshot), usage=now)
    event(type(made).__name__)
    if isinstance(made, Refusal):
        return
    positions = tuple(snapshot.detection.gpus.index(gpu) for gpu in made.options.gpus)
    said = EngineOptions(
        backend=made.backend, context=made.options.context, slots=made.options.slots, gpus=positions
    )
    again = plan(facts, said, snapshot, all_there(snapshot), usage=now)
    assert isinstance(again, Plan), again.message
    assert again.options == made.options
    assert again.footprint == made.footprint
    assert sum(item.size_bytes for item in again.footprint.items) < 2048 * GIB + MIB
