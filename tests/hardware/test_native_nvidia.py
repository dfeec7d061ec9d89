"""NVIDIA cards through the real pynvml, over a stand-in libnvidia-ml.so.1, in a child process."""

import pytest

from tests.hardware.lab import Lab, ask
from xgen_ray.hardware import GPUType

pytestmark = pytest.mark.native

MIB = 2**20
RTX_4090 = "name=NVIDIA GeForce RTX 4090,memory_mb=24564,cc=8.9,bus=00000000:01:00.0"
H100 = "name=NVIDIA H100 80GB HBM3,memory_mb=81559,cc=9.0"
GB10 = "name=NVIDIA GB10,cc=12.1,bus=0000000F:01:00.0,rc_memory=3"


def test_a_card(lab: Lab) -> None:
    report = ask("pynvml", lab.env(nvidia=RTX_4090))
    assert report.reason is None
    (gpu,) = report.gpus
    assert (gpu.gpu_type, gpu.device_index, gpu.device_name) == (GPUType.NVIDIA, 0, "NVIDIA GeForce RTX 4090")
    assert (gpu.memory_total_bytes, gpu.compute_capability) == (24564 * MIB, "8.9")
    assert (gpu.pci_bus_id, gpu.uuid) == ("0000:01:00.0", "GPU-00000000-0000-4000-8000-000000000000")
    assert (gpu.integrated, gpu.unified_memory) == (False, False)
    assert (gpu.driver_version, gpu.mig_profile, gpu.gfx_version) == ("570.86.10", None, None)
    assert gpu.notes == ()


@pytest.mark.parametrize(
    ("second", "numbers"),
    [(H100, [0, 1]), (f"{H100},mig=1g.10gb:9856", [None, None]), (f"{H100},rc_handle=15", [None])],
)
def test_cudas_numbers_are_told_where_they_are_certain(
    lab: Lab, second: str, numbers: list[int | None]
) -> None:
    report = ask("pynvml", lab.env(nvidia=f"{RTX_4090};{second}"))
    assert [gpu.cuda_index for gpu in report.gpus] == numbers


@pytest.mark.parametrize("names", ["", "plain"])
def test_slices_stand_for_a_gpu_in_mig_mode(lab: Lab, names: str) -> None:
    split = f"{H100},mig=1g.10gb:9856+1g.10gb:9856+1c.3g.40gb:40192,mig_names={names}"
    report = ask("pynvml", lab.env(nvidia=f"{H100},mig=off;{split}"))
    assert report.reason is None
    whole, *slices = report.gpus
    assert (whole.device_index, whole.memory_total_bytes, whole.mig_profile) == (0, 81559 * MIB, None)
    assert [gpu.mig_profile for gpu in slices] == [
        "1g.10gb",
        "1g.10gb",
        "1c.3g.39gb" if names else "1c.3g.40gb",
    ]
    assert [gpu.memory_total_bytes for gpu in slices] == [9856 * MIB, 9856 * MIB, 40192 * MIB]
    assert {gpu.device_index for gpu in slices} == {1}
    assert {gpu.pci_bus_id for gpu in slices} == {"0000:02:00.0"}
    assert {gpu.compute_capability for gpu in slices} == {"9.0"}
    assert {gpu.mig_parent_uuid for gpu in slices} == {"GPU-00000001-0000-4000-8000-000000000000"}
    assert len({gpu.uuid for gpu in slices}) == 3
    assert all(gpu.uuid is not None and gpu.uuid.startswith("MIG-") for gpu in slices)
    # Only the third slice is a part of a GPU instance.
    assert [bool(gpu.notes) for gpu in slices] == [False, False, True]
    assert "shared with the other compute instances" in slices[2].notes[0]


def test_mig_mode_without_slices_leaves_the_card_out_and_says_so(lab: Lab) -> None:
    report = ask("pynvml", lab.env(nvidia=f"{H100},mig=none;{RTX_4090}"))
    assert [gpu.device_name for gpu in report.gpus] == ["NVIDIA GeForce RTX 4090"]
    assert report.reason == (
        "1 of 2 GPUs left out: GPU 0: NVIDIA H100 80GB HBM3 is in MIG mode and has no slice"
    )


@pytest.mark.parametrize("name", ["NVIDIA GB10", "Orin (nvgpu)", "NVIDIA Thor", "NVIDIA Tegra X1", "Xavier"])
def test_chips_that_share_the_systems_memory(lab: Lab, name: str) -> None:
    (gpu,) = ask("pynvml", lab.env(nvidia=f"name={name},cc=12.1,rc_memory=3")).gpus
    assert (gpu.memory_total_bytes, gpu.integrated, gpu.unified_memory) == (None, True, True)
    assert "memory: NVML_ERROR_NOT_SUPPORTED" in gpu.notes
    assert "memory: shared with the system; budget it from the machine's RAM" in gpu.notes


def test_gb100_is_not_gb10(lab: Lab) -> None:
    (gpu,) = ask("pynvml", lab.env(nvidia="name=NVIDIA GB100,memory_mb=188416")).gpus
    assert (gpu.integrated, gpu.unified_memory) == (False, False)


def test_a_card_whose_memory_query_fails_keeps_everything_else(lab: Lab) -> None:
    report = ask("pynvml", lab.env(nvidia=f"{RTX_4090},rc_memory=999;{H100}"))
    assert report.reason is None
    broken, whole = report.gpus
    assert (broken.memory_total_bytes, broken.integrated, broken.unified_memory) == (None, None, False)
    assert broken.notes == ("memory: NVML_ERROR_UNKNOWN",)
    assert broken.compute_capability == "8.9"
    assert (whole.memory_total_bytes, whole.notes) == (81559 * MIB, ())


def test_an_old_driver_without_the_second_memory_query(lab: Lab) -> None:
    (gpu,) = ask("pynvml", lab.env(nvidia=f"{RTX_4090},rc_memory_v2=13")).gpus
    assert (gpu.memory_total_bytes, gpu.notes) == (24564 * MIB, ())


@pytest.mark.parametrize("trouble", ["rc_handle=15", "rc_name=15,rc_uuid=15,rc_memory=15"])
def test_a_card_that_fell_off_the_bus_is_left_out_alone(lab: Lab, trouble: str) -> None:
    report = ask("pynvml", lab.env(nvidia=f"{RTX_4090},{trouble};{H100}"))
    assert [(gpu.device_index, gpu.device_name) for gpu in report.gpus] == [(1, "NVIDIA H100 80GB HBM3")]
    assert report.reason == "1 of 2 GPUs left out: GPU 0: NVML_ERROR_GPU_IS_LOST"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (9, "driver not loaded; load the nvidia kernel module"),
        (18, "driver and library have different versions; reboot after a driver update"),
        (4, "no permission on /dev/nvidiactl"),
        (999, "nvmlInit: NVML_ERROR_UNKNOWN"),
    ],
)
def test_why_the_library_does_not_start(lab: Lab, status: int, reason: str) -> None:
    report = ask("pynvml", lab.env(nvidia=RTX_4090, STANDIN_NVML_INIT=str(status)))
    assert (report.gpus, report.reason) == ((), reason)


def test_a_machine_without_cards(lab: Lab) -> None:
    assert ask("pynvml", lab.env(nvidia="")).reason == "no NVIDIA GPU on this machine"
