"""The merge is pure: many reports in, each GPU once out."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.hardware import DetectorReport, GPUInfo, GPUType, choose_primary, merge

GIB = 2**30


def card(detected_by: str, name: str = "card", **facts: object) -> GPUInfo:
    gpu_type = GPUType.NVIDIA if detected_by in ("pynvml", "torch-cuda") else GPUType.AMD_RDNA
    plain = GPUInfo(gpu_type, 0, name, detected_by=detected_by)
    return replace(plain, **facts)  # type: ignore[arg-type]  # facts are checked by GPUInfo's own fields


def report(detector: str, *gpus: GPUInfo, reason: str | None = None) -> DetectorReport:
    return DetectorReport(detector, gpus, reason)


def test_nothing_at_all_falls_back_to_the_cpu_and_keeps_every_reason() -> None:
    reports = (
        report("amdsmi", reason="not installed"),
        report("pynvml", reason="driver not loaded"),
        report("cpu", reason="always there"),
    )
    result = merge(reports)
    assert (result.available, result.gpus, result.primary_gpu) == (False, (), None)
    assert result.detection_method == "cpu_fallback"
    assert result.reports == reports


def test_both_vendors_in_one_host_are_both_listed_and_the_card_is_primary() -> None:
    igpu = card("amdsmi", "Raphael", integrated=True, memory_total_bytes=GIB // 2, pci_bus_id="0000:0d:00.0",
                shared_memory_total_bytes=200 * GIB)  # fmt: skip
    geforce = card(
        "pynvml", "RTX 4090", integrated=False, memory_total_bytes=24 * GIB, pci_bus_id="0000:01:00.0"
    )
    result = merge([report("amdsmi", igpu), report("pynvml", geforce)])
    assert result.gpus == (igpu, geforce)
    assert result.primary_gpu == geforce
    assert result.detection_method == "pynvml"


def test_the_vendors_library_wins_over_torch_for_the_same_address() -> None:
    smi = card("pynvml", "from nvml", pci_bus_id="0000:01:00.0")
    torch = card("torch-cuda", "from torch", pci_bus_id="0000:01:00.0")
    assert merge([report("torch-cuda", torch), report("pynvml", smi)]).gpus == (smi,)


def test_torch_adds_a_card_that_the_vendors_library_lost() -> None:
    seen = card("pynvml", pci_bus_id="0000:01:00.0")
    lost = card("torch-cuda", pci_bus_id="0000:02:00.0", device_index=1)
    assert merge([report("pynvml", seen), report("torch-cuda", lost)]).gpus == (seen, lost)


def test_a_torch_card_without_address_or_uuid_counts_only_if_the_vendors_library_has_none() -> None:
    old_torch = card("torch-cuda")
    assert merge([report("pynvml"), report("torch-cuda", old_torch)]).gpus == (old_torch,)
    smi = card("pynvml", pci_bus_id="0000:01:00.0", uuid="GPU-1")
    assert merge([report("pynvml", smi), report("torch-cuda", old_torch)]).gpus == (smi,)
    radeon = card("amdsmi", pci_bus_id="0000:03:00.0")
    assert merge([report("amdsmi", radeon), report("torch-cuda", old_torch)]).gpus == (radeon, old_torch)


def test_without_addresses_uuids_decide() -> None:
    smi = card("pynvml", uuid="GPU-1")
    same = card("torch-cuda", uuid="GPU-1")
    other = card("torch-cuda", uuid="GPU-2", device_index=1)
    assert merge([report("pynvml", smi), report("torch-cuda", same, other)]).gpus == (smi, other)


def test_mig_slices_share_an_address_and_stay_apart() -> None:
    slices = [
        card("pynvml", uuid=f"MIG-{n}", pci_bus_id="0000:01:00.0", mig_profile="1g.10gb") for n in range(3)
    ]
    torch = card("torch-cuda", pci_bus_id="0000:01:00.0", uuid="GPU-parent")
    assert merge([report("pynvml", *slices), report("torch-cuda", torch)]).gpus == tuple(slices)


def test_a_software_renderer_is_left_out_and_its_report_says_so() -> None:
    imitation = card("torch-cuda", "llvmpipe (LLVM 15.0.6, 256 bits)")
    result = merge([report("torch-cuda", imitation, reason="partial")])
    assert not result.available
    assert result.detection_method == "cpu_fallback"
    assert result.reports[0].gpus == ()
    assert result.reports[0].reason == (
        "partial; left out, since it computes on the CPU: llvmpipe (LLVM 15.0.6, 256 bits)"
    )


def gpu(
    gpu_type: GPUType, gib: int | None, *, integrated: bool | None = False, shared: int | None = None
) -> GPUInfo:
    return GPUInfo(
        gpu_type,
        0,
        f"{gpu_type} {gib} {integrated}",
        memory_total_bytes=gib * GIB if gib is not None else None,
        integrated=integrated,
        shared_memory_total_bytes=shared * GIB if shared is not None else None,
    )


NVIDIA, RDNA, CDNA, UNKNOWN = GPUType.NVIDIA, GPUType.AMD_RDNA, GPUType.AMD_CDNA, GPUType.UNKNOWN


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (gpu(NVIDIA, 8), gpu(RDNA, 1, integrated=True, shared=100)),
        (gpu(NVIDIA, 24), gpu(NVIDIA, 16)),
        (gpu(RDNA, 24), gpu(NVIDIA, 16)),
        (gpu(RDNA, 1, integrated=True, shared=100), gpu(RDNA, 2, integrated=True, shared=4)),
        (gpu(NVIDIA, 8), gpu(UNKNOWN, 64)),
        (gpu(UNKNOWN, 64), gpu(RDNA, 1, integrated=True, shared=100)),
        (gpu(UNKNOWN, 64, integrated=None), gpu(RDNA, 1, integrated=True)),
        (gpu(CDNA, 128, integrated=True), gpu(RDNA, 24)),
        (gpu(NVIDIA, 8), gpu(NVIDIA, None)),
    ],
)
def test_primary(better: GPUInfo, worse: GPUInfo) -> None:
    assert choose_primary([better, worse]) == better
    assert choose_primary([worse, better]) == better


def test_primary_of_equals_is_the_first() -> None:
    first, second = gpu(NVIDIA, 80), replace(gpu(NVIDIA, 80), device_index=1)
    assert choose_primary([first, second]) is first
    assert choose_primary([]) is None


# One machine: cards with addresses of their own, each seen by its vendor's library, by torch, or by both.
SIGHTINGS = st.lists(
    st.tuples(
        st.sampled_from(["amd", "nvidia"]),
        st.sampled_from(["library", "torch", "both"]),
        st.booleans(),
        st.none() | st.integers(1, 200),
        st.sampled_from(["Some GPU", "Some GPU", "llvmpipe (LLVM 15.0.6, 256 bits)"]),
    ),
    max_size=8,
)
DETECTORS_OF = {"amd": ("amdsmi", "torch-rocm"), "nvidia": ("pynvml", "torch-cuda")}


def reports_of(sightings: list[tuple[str, str, bool, int | None, str]]) -> list[DetectorReport]:
    found: dict[str, list[GPUInfo]] = {name: [] for names in DETECTORS_OF.values() for name in names}
    for position, (vendor, seen_by, integrated, gib, name) in enumerate(sightings):
        library, torch = DETECTORS_OF[vendor]
        for detector in {"library": [library], "torch": [torch], "both": [library, torch]}[seen_by]:
            found[detector].append(
                card(
                    detector,
                    name,
                    device_index=position,
                    pci_bus_id=f"0000:{position + 1:02x}:00.0",
                    integrated=integrated,
                    memory_total_bytes=gib * GIB if gib is not None else None,
                )
            )
    return [DetectorReport(name, tuple(gpus)) for name, gpus in found.items()]


@settings(max_examples=60)
@given(SIGHTINGS, st.randoms(use_true_random=False))
def test_each_card_once_whatever_the_order_of_reports(
    sightings: list[tuple[str, str, bool, int | None, str]], chance: random.Random
) -> None:
    reports = reports_of(sightings)
    result = merge(reports)
    real = {f"0000:{n + 1:02x}:00.0" for n, (*_, name) in enumerate(sightings) if "llvmpipe" not in name}
    assert sorted(gpu.pci_bus_id or "" for gpu in result.gpus) == sorted(real)

    shuffled = list(reports)
    chance.shuffle(shuffled)
    assert merge(shuffled) == result

    for gpu in result.gpus:
        vendor, seen_by, *_ = sightings[gpu.device_index]
        library, torch = DETECTORS_OF[vendor]
        assert gpu.detected_by == (torch if seen_by == "torch" else library)

    assert {r.detector for r in result.reports} == {r.detector for r in reports}
    assert result.available == bool(result.gpus)
    if result.primary_gpu is None:
        assert not result.gpus
        assert result.detection_method == "cpu_fallback"
    else:
        assert result.primary_gpu in result.gpus
        assert result.detection_method == result.primary_gpu.detected_by
        if any(not gpu.integrated for gpu in result.gpus):
            assert not result.primary_gpu.integrated
