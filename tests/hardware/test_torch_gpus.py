"""The torch fallbacks over a stand-in torch package, in a child process, and what its version file tells."""

from pathlib import Path

import pytest

from tests.hardware.lab import ask, install_torch, torch_env
from xgen_ray.hardware import GPUType
from xgen_ray.hardware.torch_gpus import torch_builds

GIB = 2**30
L4 = {
    "name": "NVIDIA L4", "total_memory": 23 * GIB, "major": 8, "minor": 9, "uuid": "aaaa-bbbb",
    "pci_domain_id": 0, "pci_bus_id": 1, "pci_device_id": 0, "is_integrated": 0,
}  # fmt: skip
MI300X = {"name": "AMD Instinct MI300X", "total_memory": 192 * GIB, "gcnArchName": "gfx942:sramecc+:xnack-"}
STRIX = {"name": "Radeon 8060S", "total_memory": 96 * GIB, "gcnArchName": "gfx1151", "is_integrated": 1}


@pytest.mark.parametrize(
    ("text", "builds"),
    [
        (
            "from typing import Optional\ncuda: Optional[str] = '12.6'\nhip: Optional[str] = None\n",
            {"cuda": "12.6", "hip": None},
        ),
        ("cuda = None\nhip = '6.4'\n", {"cuda": None, "hip": "6.4"}),
        ("__version__ = '2'\n", {}),
        ("hip = compute()\n", {"hip": None}),
    ],
)
def test_builds_by_the_version_file(text: str, builds: dict[str, str | None]) -> None:
    assert torch_builds(text) == builds


@pytest.mark.native
def test_a_cuda_build(tmp_path: Path) -> None:
    env = torch_env(
        install_torch(tmp_path, cuda="13.0", hip=None), [L4, {"error": "CUDA error: device busy"}]
    )
    report = ask("torch-cuda", env)
    (gpu,) = report.gpus
    assert (gpu.gpu_type, gpu.device_name, gpu.memory_total_bytes) == (GPUType.NVIDIA, "NVIDIA L4", 23 * GIB)
    assert (gpu.compute_capability, gpu.pci_bus_id, gpu.uuid) == ("8.9", "0000:01:00.0", "GPU-aaaa-bbbb")
    assert gpu.integrated is False
    assert report.reason == "1 of 2 GPUs left out: GPU 1: CUDA error: device busy"


@pytest.mark.native
def test_a_rocm_build(tmp_path: Path) -> None:
    env = torch_env(install_torch(tmp_path, cuda=None, hip="6.4"), [MI300X, STRIX])
    report = ask("torch-rocm", env)
    assert report.reason is None
    instinct, strix = report.gpus
    assert (instinct.gpu_type, instinct.gfx_version) == (GPUType.AMD_CDNA, "gfx942")
    assert (strix.gpu_type, strix.gfx_version) == (GPUType.AMD_RDNA, "gfx1151")
    assert (strix.integrated, strix.unified_memory, strix.device_index) == (True, True, 1)


@pytest.mark.native
@pytest.mark.parametrize(
    ("detector", "cuda", "hip", "reason"),
    [
        ("torch-rocm", "13.0", None, "the installed torch is not a ROCm build"),
        ("torch-cuda", None, "6.4", "the installed torch is not a CUDA build"),
        ("torch-cuda", None, None, "the installed torch is not a CUDA build"),
    ],
)
def test_another_build_is_told_without_importing_it(
    tmp_path: Path, detector: str, cuda: str | None, hip: str | None, reason: str
) -> None:
    mark = tmp_path / "imported"
    env = torch_env(install_torch(tmp_path, cuda=cuda, hip=hip), [L4]) | {"STANDIN_TORCH_MARK": str(mark)}
    report = ask(detector, env)
    assert (report.gpus, report.reason) == ((), reason)
    assert not mark.exists()


@pytest.mark.native
def test_a_torch_that_sees_no_gpu(tmp_path: Path) -> None:
    report = ask("torch-cuda", torch_env(install_torch(tmp_path, cuda="13.0", hip=None), []))
    assert report.reason == "torch 2.11.0 sees no GPU"


@pytest.mark.native
def test_a_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    folder = install_torch(tmp_path, cuda="13.0", hip=None)
    (folder / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    assert (
        ask("torch-cuda", torch_env(folder, [])).reason
        == "importing torch failed: libcudart.so.13: cannot open"
    )


@pytest.mark.native
def test_masks_of_the_parent_do_not_hide_a_gpu(tmp_path: Path) -> None:
    """Inventory is the machine's; a torch that honours the masks would see nothing here."""
    folder = install_torch(tmp_path, cuda="13.0", hip=None)
    init = folder / "torch" / "__init__.py"
    init.write_text(
        init.read_text()
        + "\nif 'CUDA_VISIBLE_DEVICES' in os.environ:\n    cuda = SimpleNamespace(device_count=lambda: 0)\n"
        "if os.environ['CUDA_DEVICE_ORDER'] != 'PCI_BUS_ID':\n    raise RuntimeError('order')\n"
    )
    report = ask("torch-cuda", torch_env(folder, [L4]) | {"CUDA_VISIBLE_DEVICES": ""})
    assert [gpu.device_name for gpu in report.gpus] == ["NVIDIA L4"]
