"""Stability rows: where each holds, and that a user's word comes first."""

from dataclasses import replace

import pytest

from tests.placement.builders import (
    all_there,
    dense,
    device,
    embedder,
    host,
    igpu,
    node,
    rtx4090,
    rx7900xtx,
    smollm2,
    strix_halo,
    there,
)
from xgen_ray.hardware.types import GPUInfo
from xgen_ray.models.types import ModelFacts, ModelTask
from xgen_ray.placement import (
    BACKENDS,
    PROFILES,
    Backend,
    DeviceAPI,
    EngineOptions,
    PlacementPolicy,
    Plan,
    ProfileRow,
    Refusal,
    plan,
)
from xgen_ray.placement.profiles import profile, threads_for
from xgen_ray.placement.sizes import GIB, MIB

ROCM, VULKAN, CPU = Backend.LLAMA_SERVER_ROCM, Backend.LLAMA_SERVER_VULKAN, Backend.LLAMA_SERVER_CPU


@pytest.mark.parametrize(
    ("backend", "task", "gpus", "option", "value"),
    [
        (ROCM, ModelTask.GENERATE, (rx7900xtx(),), "flash_attention", False),
        (ROCM, ModelTask.GENERATE, (rx7900xtx(),), "fit", False),
        (ROCM, ModelTask.EMBED, (rx7900xtx(),), "gpu_layers", 0),
        (ROCM, ModelTask.GENERATE, (rx7900xtx(),), "gpu_layers", None),
        (VULKAN, ModelTask.GENERATE, (rx7900xtx(),), "flash_attention", None),
        (VULKAN, ModelTask.EMBED, (rx7900xtx(),), "gpu_layers", None),
        (Backend.VLLM_ROCM, ModelTask.EMBED, (rx7900xtx(),), "gpu_layers", None),
        (VULKAN, ModelTask.GENERATE, (strix_halo(),), "slots", 1),
        (VULKAN, ModelTask.GENERATE, (rx7900xtx(), igpu()), "slots", 1),
        (VULKAN, ModelTask.GENERATE, (rtx4090(),), "slots", 4),
        (CPU, ModelTask.GENERATE, (), "slots", 4),
        (Backend.LLAMA_CPP_PYTHON, ModelTask.GENERATE, (), "slots", 1),
        (CPU, ModelTask.GENERATE, (), "ubatch", 512),
        (CPU, ModelTask.EMBED, (), "ubatch", 2048),
        (CPU, ModelTask.RERANK, (), "batch", 2048),
    ],
)
def test_rows(
    backend: Backend, task: ModelTask, gpus: tuple[GPUInfo, ...], option: str, value: int | bool | None
) -> None:
    row = profile(BACKENDS[backend], task, gpus).get(option)
    assert (None if row is None else row.value) == value
    assert row is None or row.reason


def rocm_node() -> tuple[Plan, Plan]:
    snapshot = node(rx7900xtx())
    statuses = [there(ROCM, device("ROCm0", "AMD Radeon RX 7900 XTX", 24 * GIB))]
    plain = plan(smollm2(), EngineOptions(), snapshot, statuses)
    forced = plan(smollm2(), EngineOptions(flash_attention=True, fit=True, slots=2), snapshot, statuses)
    assert isinstance(plain, Plan)
    assert isinstance(forced, Plan)
    return plain, forced


def test_rocm_runs_without_flash_attention_and_fit_unless_asked() -> None:
    plain, forced = rocm_node()
    assert (plain.options.flash_attention, plain.options.fit) == (False, False)
    noted = {note.option: note for note in plain.notes}
    assert noted["flash_attention"].value == "off"
    assert "ROCm" in noted["flash_attention"].reason
    assert (forced.options.flash_attention, forced.options.fit, forced.options.slots) == (True, True, 2)
    assert not {"flash_attention", "fit", "slots"} & {note.option for note in forced.notes}


def test_a_row_from_configuration_comes_first() -> None:
    mine = ProfileRow("slots", 3, "this card is small", gfx=frozenset({"gfx1100"}))
    policy = PlacementPolicy(profiles=(mine, *PROFILES))
    for gpu, slots in ((rx7900xtx(), 3), (rtx4090(), 4)):
        snapshot = node(gpu)
        made = plan(smollm2(), EngineOptions(), snapshot, all_there(snapshot), policy=policy)
        assert isinstance(made, Plan)
        assert made.options.slots == slots


@pytest.mark.parametrize(
    ("cpus", "on_gpu", "threads"),
    [(1, False, 1), (2, False, 1), (3, False, 2), (16, False, 15), (1, True, 1), (4, True, 3), (64, True, 4)],
)
def test_threads_leave_a_core(cpus: int, on_gpu: bool, threads: int) -> None:
    assert threads_for(cpus, on_gpu)[0] == threads


def embedding_plan(options: EngineOptions, **kinds: bool) -> Plan:
    snapshot = node(rx7900xtx())
    statuses = [there(ROCM, device("ROCm0", "AMD Radeon RX 7900 XTX", 24 * GIB)), there(CPU)]
    if kinds.get("vulkan"):
        statuses.append(there(VULKAN, device("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", 24 * GIB)))
    made = plan(embedder(), options, snapshot, statuses)
    assert isinstance(made, Plan), made
    return made


def test_embeddings_leave_rocm_for_the_cpu() -> None:
    made = embedding_plan(EngineOptions())
    assert made.backend is CPU
    assert any("llama-server-rocm" in warning for warning in made.warnings)
    assert embedding_plan(EngineOptions(), vulkan=True).backend is VULKAN
    forced = embedding_plan(EngineOptions(backend=ROCM))
    assert (forced.backend, forced.options.gpu_layers, forced.options.devices) == (ROCM, 0, ())
    assert forced.footprint.gpu_bytes == 0
    on_gpu = embedding_plan(EngineOptions(backend=ROCM, gpus=(0,)))
    assert on_gpu.options.devices == ("ROCm0",)
    assert any("page faults" in warning for warning in on_gpu.warnings)


@pytest.mark.parametrize(
    ("options", "context", "batch", "ubatch", "warned"),
    [
        (EngineOptions(), 2048, 2048, 2048, False),
        (EngineOptions(context=8000), 8000, 8000, 8000, False),
        (EngineOptions(context=1024), 1024, 2048, 2048, False),
        (EngineOptions(context=4096, ubatch=512), 4096, 2048, 512, True),
        (EngineOptions(ubatch=4096), 2048, 4096, 4096, False),
        (EngineOptions(batch=1024), 2048, 1024, 1024, True),
    ],
)
def test_an_embedding_input_fits_one_batch(
    options: EngineOptions, context: int, batch: int, ubatch: int, warned: bool
) -> None:
    made = embedding_plan(options, vulkan=True)
    assert (made.options.context, made.options.batch, made.options.ubatch) == (context, batch, ubatch)
    assert any("ubatch" in warning for warning in made.warnings) is warned


@pytest.mark.parametrize(
    ("memlock", "ram", "asked", "locked", "warned"),
    [
        (64 * GIB, 64 * GIB, None, True, False),
        (64 * 1024, 64 * GIB, None, False, True),
        (64 * 1024, 64 * GIB, False, False, False),
        (64 * 1024, 64 * GIB, True, False, True),
    ],
)
def test_memory_is_locked_only_where_the_limit_allows(
    memlock: int, ram: int, asked: bool | None, locked: bool, warned: bool
) -> None:
    snapshot = node(on=host(ram, memlock=memlock))
    made = plan(smollm2(), EngineOptions(memory_lock=asked), snapshot, all_there(snapshot))
    assert isinstance(made, Plan)
    assert made.options.memory_lock is locked
    assert any("RLIMIT_MEMLOCK" in warning and "94 MiB" in warning for warning in made.warnings) is warned


def test_memory_of_an_apu_is_not_locked_where_ram_is_short() -> None:
    """The weights lie in RAM once already; a locked second copy must fit beside it."""
    small = node(strix_halo(), on=host(32 * GIB, available=26 * GIB))
    made = plan(dense(32), EngineOptions(), small, all_there(small))
    assert isinstance(made, Plan)
    assert not made.options.memory_lock
    assert any(warning.startswith("memory is not locked") for warning in made.warnings)
    card = node(rtx4090())
    on_card = plan(smollm2(), EngineOptions(), card, all_there(card))
    assert isinstance(on_card, Plan)
    assert not on_card.options.memory_lock
    assert not on_card.warnings


def test_an_unknown_lock_limit_is_not_taken_for_none() -> None:
    machine = replace(host(), memlock_limit_bytes=None)
    snapshot = node(on=machine)
    made = plan(smollm2(weight_bytes=100 * MIB), EngineOptions(), snapshot, all_there(snapshot))
    assert isinstance(made, Plan)
    assert not made.options.memory_lock


def test_a_quantised_cache_needs_flash_attention() -> None:
    snapshot = node(rx7900xtx())
    rocm = [there(ROCM, device("ROCm0", "AMD Radeon RX 7900 XTX", 24 * GIB))]
    refused = plan(smollm2(), EngineOptions(kv_cache_type="q8_0"), snapshot, rocm)
    assert not isinstance(refused, Plan)
    assert "flash attention" in refused.message
    allowed = plan(smollm2(), EngineOptions(kv_cache_type="q8_0", flash_attention=True), snapshot, rocm)
    assert isinstance(allowed, Plan)
    cpu = plan(smollm2(), EngineOptions(kv_cache_type="q8_0"), node(), [there(CPU)])
    assert isinstance(cpu, Plan)
    assert cpu.options.flash_attention is True


def apu_plan(backend: Backend, *rows: ProfileRow, facts: ModelFacts | None = None) -> Plan:
    """On an APU of which Vulkan sees 53 GiB and ROCm 6."""
    snapshot = node(strix_halo(), on=host(96 * GIB))
    statuses = [
        there(VULKAN, device("Vulkan0", "Radeon 8060S Graphics (RADV GFX1151)", 53 * GIB)),
        there(ROCM, device("ROCm0", "AMD Radeon Graphics", 6 * GIB)),
    ]
    policy = PlacementPolicy(profiles=(*rows, *PROFILES))
    made = plan(facts or smollm2(), EngineOptions(backend=backend), snapshot, statuses, policy=policy)
    assert isinstance(made, Plan), made.message
    return made


def test_an_integrated_gpu_has_one_slot_and_a_card_four_until_a_row_says_otherwise() -> None:
    wide = ProfileRow("slots", 3, "this APU has 128 GB", gfx=frozenset({"gfx1151"}))
    narrow = ProfileRow("slots", 2, "cards serve two here", integrated=False)
    card = node(rtx4090())
    for rows, on_apu, on_card in (((), 1, 4), ((wide,), 3, 4), ((wide, narrow), 3, 2)):
        for backend in (VULKAN, ROCM):
            assert apu_plan(backend, *rows).options.slots == on_apu
        policy = PlacementPolicy(profiles=(*rows, *PROFILES))
        made = plan(smollm2(), EngineOptions(), card, all_there(card), policy=policy)
        assert isinstance(made, Plan)
        assert made.options.slots == on_card


def test_the_memory_of_an_apu_is_the_engines_word_until_a_row_says_less() -> None:
    assert apu_plan(VULKAN).gpu_needs[0].free_bytes == 53 * GIB
    assert apu_plan(ROCM).gpu_needs[0].free_bytes == 6 * GIB
    row = ProfileRow(
        "memory_bytes", 18 * GIB, "the desktop needs the rest", frozenset(), frozenset({DeviceAPI.VULKAN})
    )
    limited = apu_plan(VULKAN, row)
    assert limited.gpu_needs[0].free_bytes == 18 * GIB
    assert apu_plan(ROCM, row).gpu_needs[0].free_bytes == 6 * GIB
    assert apu_plan(VULKAN, facts=dense(32)).warnings == ()
    shrunk = apu_plan(VULKAN, row, facts=dense(32))
    assert "at most 18.0 GiB: the desktop needs the rest; without that, " in shrunk.warnings[0]


def refused(facts: ModelFacts, free: int, limit: int) -> Refusal:
    """By an APU with so much free memory, of which a row lets a model have only ``limit``."""
    snapshot = node(strix_halo(shared=free), on=host(96 * GIB))
    statuses = [there(VULKAN, device("Vulkan0", "Radeon 8060S Graphics (RADV GFX1151)", free))]
    row = ProfileRow("memory_bytes", limit, "the desktop needs the rest", integrated=True)
    policy = PlacementPolicy(profiles=(row, *PROFILES))
    made = plan(facts, EngineOptions(backend=VULKAN), snapshot, statuses, policy=policy)
    assert isinstance(made, Refusal)
    return made


def test_who_is_refused_by_a_row_is_told_of_it_and_not_to_free_memory() -> None:
    by_row = refused(dense(32), 53 * GIB, 9 * GIB)
    assert "a model may use 9.0 GiB of AMD Radeon Graphics" in by_row.message
    assert by_row.message.endswith("raise memory_bytes in the configuration's profiles or add a GPU.")
    by_memory = refused(dense(32), 9 * GIB, 53 * GIB)
    assert "memory_bytes" not in by_memory.message
    assert by_memory.message.endswith("unload another model or add a GPU.")
