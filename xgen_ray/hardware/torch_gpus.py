"""GPUs through PyTorch, for a node where the vendor's own library gave nothing."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

from xgen_ray.hardware.fields import left_out
from xgen_ray.hardware.gfx import classify_gfx, parse_gfx
from xgen_ray.hardware.pci import normalise_pci
from xgen_ray.hardware.types import DetectorReport, GPUInfo, GPUType

ROCM_NAME = "torch-rocm"
CUDA_NAME = "torch-cuda"


def detect_torch_rocm() -> DetectorReport:
    """AMD GPUs as a ROCm build of PyTorch sees them."""
    return _detect(ROCM_NAME, "hip", "ROCm")


def detect_torch_cuda() -> DetectorReport:
    """NVIDIA GPUs as a CUDA build of PyTorch sees them."""
    return _detect(CUDA_NAME, "cuda", "CUDA")


def torch_builds(version_file: str) -> dict[str, str | None]:
    """``{"cuda": "13.0", "hip": None}`` from the text of torch/version.py, without importing torch."""
    builds: dict[str, str | None] = {}
    for node in ast.parse(version_file).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("cuda", "hip"):
                constant = value.value if isinstance(value, ast.Constant) else None
                builds[target.id] = constant if isinstance(constant, str) else None
    return builds


def _detect(detector: str, key: str, build: str) -> DetectorReport:
    if refusal := _wrong_build(key, build):
        return DetectorReport(detector, reason=refusal)
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:
        return DetectorReport(detector, reason=f"importing torch failed: {error}")
    if getattr(torch.version, key, None) is None:
        return DetectorReport(detector, reason=f"torch {torch.__version__} is not a {build} build")
    try:
        count = torch.cuda.device_count()
    except RuntimeError as error:
        return DetectorReport(detector, reason=f"torch {torch.__version__}: {error}")
    if not count:
        return DetectorReport(detector, reason=f"torch {torch.__version__} sees no GPU")
    gpus: list[GPUInfo] = []
    lost: list[str] = []
    for index in range(count):
        try:
            properties = torch.cuda.get_device_properties(index)
        except (RuntimeError, AssertionError) as error:
            lost.append(f"GPU {index}: {error}")
        else:
            gpus.append(_amd(index, properties) if key == "hip" else _nvidia(index, properties))
    return DetectorReport(detector, tuple(gpus), left_out(lost, count))


def _wrong_build(key: str, build: str) -> str | None:
    """Why the installed torch cannot help, found without its import, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "torch is not installed"
    version_file = Path(spec.origin).with_name("version.py")
    try:
        builds = torch_builds(version_file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    if key in builds and builds[key] is None:
        return f"the installed torch is not a {build} build"
    return None


def _amd(index: int, properties: Any) -> GPUInfo:
    gfx, refused = parse_gfx(str(getattr(properties, "gcnArchName", "")).split(":")[0])
    row = classify_gfx(gfx) if gfx is not None else None
    integrated = _integrated(properties)
    if integrated is None and row is not None:
        integrated = row.integrated
    note = refused if row is None else row.note
    return GPUInfo(
        gpu_type=row.gpu_type if row is not None else GPUType.UNKNOWN,
        device_index=index,
        device_name=properties.name,
        memory_total_bytes=properties.total_memory,
        gfx_version=gfx,
        pci_bus_id=_address(properties),
        integrated=integrated,
        unified_memory=bool(integrated),
        detected_by=ROCM_NAME,
        notes=(note,) if note else (),
    )


def _nvidia(index: int, properties: Any) -> GPUInfo:
    integrated = _integrated(properties)
    uuid = getattr(properties, "uuid", None)
    return GPUInfo(
        gpu_type=GPUType.NVIDIA,
        device_index=index,
        device_name=properties.name,
        memory_total_bytes=properties.total_memory,
        compute_capability=f"{properties.major}.{properties.minor}",
        pci_bus_id=_address(properties),
        uuid=f"GPU-{str(uuid).removeprefix('GPU-')}" if uuid is not None else None,
        integrated=integrated,
        unified_memory=bool(integrated),
        detected_by=CUDA_NAME,
    )


def _integrated(properties: Any) -> bool | None:
    flag = getattr(properties, "is_integrated", None)
    return bool(flag) if flag is not None else None


def _address(properties: Any) -> str | None:
    """The PCI address, where this torch is recent enough to tell."""
    domain, bus, device = (
        getattr(properties, field, None) for field in ("pci_domain_id", "pci_bus_id", "pci_device_id")
    )
    if not isinstance(bus, int) or not isinstance(device, int):
        return None
    return normalise_pci(f"{domain or 0:04x}:{bus:02x}:{device:02x}.0")
