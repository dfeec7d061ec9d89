"""AMD cards through the real amdsmi package, over a stand-in libamd_smi.so, in a child process."""

import pytest

from tests.hardware.lab import Lab, ask
from xgen_ray.hardware import GPUType
from xgen_ray.hardware.amd import read_asic

pytestmark = pytest.mark.native

GIB = 2**30
STRIX_HALO = "name=AMD Radeon 8060S,gfx=1151,vram_mb=512,gtt_mb=98304,bdf=0000:c1:00.0"
RX_7900 = "name=AMD Radeon RX 7900 XTX,gfx=1100,vram_mb=24560,bdf=0000:03:00.0"
MI300X = "name=AMD Instinct MI300X,gfx=942,vram_mb=196592,bdf=0000:05:00.0"


def test_an_apu_has_its_carve_out_and_what_it_shares(lab: Lab) -> None:
    report = ask("amdsmi", lab.env(amd=STRIX_HALO))
    assert report.reason is None
    (gpu,) = report.gpus
    assert (gpu.gpu_type, gpu.gfx_version, gpu.device_name) == (
        GPUType.AMD_RDNA,
        "gfx1151",
        "AMD Radeon 8060S",
    )
    assert (gpu.memory_total_bytes, gpu.shared_memory_total_bytes) == (GIB // 2, 96 * GIB)
    assert (gpu.integrated, gpu.unified_memory) == (True, True)
    assert gpu.pci_bus_id == "0000:c1:00.0"
    assert gpu.driver_version == "6.14.14"
    assert gpu.notes == ()
    # HIP calls every APU GPU-XX; the library's own UUID stands in.
    assert gpu.uuid == "00ff1586-0000-1000-8000-0000000a0000"


@pytest.mark.parametrize(
    ("card", "gpu_type", "gfx", "integrated"),
    [
        (MI300X, GPUType.AMD_CDNA, "gfx942", False),
        ("name=AMD Instinct MI300A,gfx=942,vram_mb=131072", GPUType.AMD_CDNA, "gfx942", True),
        (RX_7900, GPUType.AMD_RDNA, "gfx1100", False),
        ("name=Radeon RX Vega,gfx=900,vram_mb=8176", GPUType.UNKNOWN, "gfx900", False),
        ("name=AMD Radeon Graphics,gfx=90c,vram_mb=512,gtt_mb=7168", GPUType.UNKNOWN, "gfx90c", True),
        ("name=AMD Next,gfx=1300,vram_mb=32768", GPUType.UNKNOWN, "gfx1300", None),
    ],
)
def test_families(lab: Lab, card: str, gpu_type: GPUType, gfx: str, integrated: bool | None) -> None:
    (gpu,) = ask("amdsmi", lab.env(amd=card)).gpus
    assert (gpu.gpu_type, gpu.gfx_version, gpu.integrated) == (gpu_type, gfx, integrated)
    assert gpu.unified_memory == bool(integrated)
    assert bool(gpu.notes) == (gpu_type is GPUType.UNKNOWN)
    if gpu_type is GPUType.UNKNOWN:
        assert gfx in gpu.notes[0]
    if not integrated:
        assert gpu.uuid == "GPU-00000000000a0000"
        assert gpu.shared_memory_total_bytes is None


def test_a_card_whose_gfx_id_is_not_supported_is_still_a_card(lab: Lab) -> None:
    (gpu,) = ask("amdsmi", lab.env(amd="name=AMD Old,gfx=ffffffffffffffff,vram_mb=4096")).gpus
    assert (gpu.gpu_type, gpu.gfx_version, gpu.memory_total_bytes) == (GPUType.UNKNOWN, None, 4 * GIB)
    assert "'gfxffffffffffffffff' is not a gfx id" in gpu.notes[0]


def test_a_memory_query_that_fails_loses_that_field_of_that_card(lab: Lab) -> None:
    report = ask("amdsmi", lab.env(amd=f"{RX_7900};{MI300X},rc_memory=12"))
    assert report.reason is None
    radeon, instinct = report.gpus
    assert radeon.memory_total_bytes == 24560 * 2**20
    assert radeon.notes == ()
    assert instinct.memory_total_bytes is None
    assert instinct.notes == ("memory: AMDSMI_STATUS_IO",)
    assert instinct.gfx_version == "gfx942"


def test_a_card_that_answers_nothing_is_left_out_alone(lab: Lab) -> None:
    report = ask("amdsmi", lab.env(amd=f"{RX_7900};{MI300X},rc_asic=30,rc_bdf=30"))
    assert [gpu.gfx_version for gpu in report.gpus] == ["gfx1100"]
    assert report.reason == "1 of 2 GPUs left out: GPU 1: gfx: AMDSMI_STATUS_BUSY"


def test_a_card_without_chip_facts_keeps_its_address_and_memory(lab: Lab) -> None:
    (gpu,) = ask("amdsmi", lab.env(amd=f"{RX_7900},rc_asic=2")).gpus
    assert (gpu.gpu_type, gpu.gfx_version, gpu.integrated) == (GPUType.UNKNOWN, None, None)
    assert (gpu.pci_bus_id, gpu.memory_total_bytes) == ("0000:03:00.0", 24560 * 2**20)
    assert gpu.notes == ("gfx: AMDSMI_STATUS_NOT_SUPPORTED",)


def test_indices_are_hips_own(lab: Lab) -> None:
    report = ask("amdsmi", lab.env(amd=f"{RX_7900},hip=1;{MI300X},hip=0"))
    assert [(gpu.device_index, gpu.gfx_version) for gpu in report.gpus] == [(0, "gfx942"), (1, "gfx1100")]


@pytest.mark.parametrize("trouble", ["rc_enumeration=2", "hip=4294967295", "hip=0"])
def test_without_hips_indices_cards_are_numbered_by_address(lab: Lab, trouble: str) -> None:
    report = ask("amdsmi", lab.env(amd=f"{MI300X},hip=0;{RX_7900},{trouble}"))
    assert [(gpu.device_index, gpu.pci_bus_id) for gpu in report.gpus] == [
        (0, "0000:03:00.0"),
        (1, "0000:05:00.0"),
    ]
    assert all("HIP index: not known for every GPU" in gpu.notes[-1] for gpu in report.gpus)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (34, "driver not loaded; load the amdgpu kernel module"),
        (10, "no permission on /dev/kfd or /dev/dri"),
        (18, "amdsmi_init: AMDSMI_STATUS_INIT_ERROR"),
    ],
)
def test_why_the_library_does_not_start(lab: Lab, status: int, reason: str) -> None:
    report = ask("amdsmi", lab.env(amd=RX_7900, STANDIN_AMDSMI_INIT=str(status)))
    assert report.gpus == ()
    assert report.reason is not None
    assert report.reason.startswith(reason)


def test_a_machine_without_cards(lab: Lab) -> None:
    assert ask("amdsmi", lab.env(amd="")).reason == "no AMD GPU on this machine"


def test_flags_of_newer_libraries_tell_an_apu_whatever_its_id() -> None:
    facts = read_asic({"market_name": "N/A", "target_graphics_version": "gfx942", "flags": 0x1})
    assert (facts.name, facts.integrated, facts.gpu_type) == ("AMD GPU", True, GPUType.AMD_CDNA)
    assert read_asic({"target_graphics_version": "gfx1151", "flags": 0x2}).integrated is False
    assert read_asic({"target_graphics_version": "N/A", "flags": 0x1}).integrated is True
    assert read_asic({"target_graphics_version": "gfx1151", "flags": "N/A"}).integrated is True
