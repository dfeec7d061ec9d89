"""Checks of GPUs: seen by their vendor's library, open to this user, known to an engine. Pure."""

from collections.abc import Iterator, Sequence

from xgen_ray.doctor.facts import PCIGPU, DeviceFile, NodeFacts
from xgen_ray.doctor.findings import Finding, Level
from xgen_ray.hardware import GPUInfo, GPUType, classify_gfx
from xgen_ray.placement import BACKENDS, DEFAULT_POLICY, VLLM_ROCM_GFX
from xgen_ray.placement.devices import usable_gpus
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.rows import VLLM_CUDA_CAPABILITY
from xgen_ray.placement.types import DeviceAPI

_DETECTORS = {"nvidia": "pynvml", "amd": "amdsmi"}
_STAND_INS = {"nvidia": "torch-cuda", "amd": "torch-rocm"}
_NAMES = {"nvidia": "NVIDIA", "amd": "AMD"}
_KERNEL_DRIVERS = {"nvidia": "nvidia", "amd": "amdgpu"}
# Drivers that hold a card for somebody else.
_GIVEN_AWAY = frozenset({"vfio-pci", "pci-stub", "xen-pciback"})
# The device files without which a vendor's compute does not start, and how they come to be.
_REQUIRED_FILES = {
    "nvidia": {
        "/dev/nvidiactl": "load the driver with `nvidia-smi`, or give the container its GPUs (--gpus all)",
        "/dev/nvidia-uvm": "run `nvidia-modprobe -u -c=0`, or give the container its GPUs (--gpus all)",
    },
    "amd": {"/dev/kfd": "give the container its devices (--device /dev/kfd --device /dev/dri)"},
}


def check_drivers(facts: NodeFacts) -> Iterator[Finding]:
    """Of each vendor: what is on the bus, what drives it, and what its library sees."""
    for vendor in _DETECTORS:
        cards = [card for card in facts.pci_gpus or () if card.vendor == vendor]
        yield from _bound(vendor, cards)
        yield _detected(facts, vendor, cards)


def _bound(vendor: str, cards: Sequence[PCIGPU]) -> Iterator[Finding]:
    wanted = _KERNEL_DRIVERS[vendor]
    for card in cards:
        what = f"the {_NAMES[vendor]} card at {card.address}"
        if card.driver in _GIVEN_AWAY:
            yield Finding("driver", Level.NOTE, f"{what} is held by {card.driver}, for a virtual machine")
        elif card.driver is None:
            advice = f"install the {wanted} driver and load it (modprobe {wanted}; dmesg has the reason)"
            yield Finding("driver", Level.PROBLEM, f"{what} has no kernel driver", advice)
        elif card.driver != wanted:
            advice = f"install the {wanted} driver, and keep {card.driver} from loading"
            yield Finding("driver", Level.PROBLEM, f"{what} is driven by {card.driver}", advice)


def _detected(facts: NodeFacts, vendor: str, cards: Sequence[PCIGPU]) -> Finding:
    detector = _DETECTORS[vendor]
    detection = facts.snapshot.detection
    report = next((report for report in detection.reports if report.detector == detector), None)
    reason = report.reason if report is not None else "it was not asked"
    gpus = [gpu for gpu in detection.gpus if gpu.detected_by == detector]
    driven = [card for card in cards if card.driver == _KERNEL_DRIVERS[vendor]]
    if gpus:
        drivers = sorted({gpu.driver_version for gpu in gpus if gpu.driver_version})
        found = f"{detector} sees {_count(gpus)}{', driver ' + ', '.join(drivers) if drivers else ''}"
        if reason is None:
            return Finding("driver", Level.OK, found)
        advice = "look at `xgen-ray detect` and dmesg; a reset or reboot brings a lost GPU back"
        return Finding("driver", Level.WARNING, f"{found}, but not all: {reason}", advice)
    others = [gpu for gpu in detection.gpus if gpu.detected_by == _STAND_INS[vendor]]
    if others:
        found = f"{_STAND_INS[vendor]} sees {_count(others)}, but {detector} none: {reason}"
        advice = "mend what the reason names: without it there are no live figures of memory"
        return Finding("driver", Level.WARNING, found, advice)
    if driven:
        found = f"{len(driven)} {_NAMES[vendor]} on the PCI bus, but {detector} sees none: {reason}"
        advice = "mend what the reason names; in a container, give it the GPUs"
        return _weighed(_unused_level(facts, vendor), "driver", found, advice)
    bus = "the PCI bus cannot be read" if facts.pci_gpus is None else f"no {_NAMES[vendor]} GPU in use here"
    return Finding("driver", Level.NOTE, f"{bus}; {detector}: {reason}")


def _count(gpus: Sequence[GPUInfo]) -> str:
    return f"{len(gpus)} GPU{'s' if len(gpus) != 1 else ''}"


def check_device_files(facts: NodeFacts) -> Iterator[Finding]:
    """Whether this user may use what GPUs are used through."""
    for vendor, required in _REQUIRED_FILES.items():
        if not _has_cards(facts, vendor):
            continue
        there = {file.path for file in facts.device_files}
        for path, advice in required.items():
            if path not in there:
                found = f"{path} is missing, which {_NAMES[vendor]} compute goes through"
                yield _weighed(_unused_level(facts, vendor), "devices", found, advice)
    for file in facts.device_files:
        if not file.usable:
            mode = f"mode {file.mode:o}, " if file.mode is not None else ""
            found = f"{facts.user} may not read and write {file.path} ({mode}group {file.group or 'unknown'})"
            advice = _access_advice(facts.user, file)
            yield _weighed(_unused_level(facts, _computes_through(file)), "devices", found, advice)
    usable = [file.path for file in facts.device_files if file.usable]
    if usable:
        yield Finding("devices", Level.OK, f"{facts.user} may use {', '.join(usable)}")
    elif not facts.device_files:
        yield Finding("devices", Level.NOTE, "no GPU device files (/dev/kfd, /dev/dri/render*, /dev/nvidia*)")


def _computes_through(file: DeviceFile) -> str | None:
    """Whose compute goes through a file. NVIDIA's does without render nodes, and Intel's is not used here."""
    if file.path.startswith("/dev/nvidia"):
        return "nvidia"
    return "amd" if file.path == "/dev/kfd" or file.vendor == "amd" else None


def _unused_level(facts: NodeFacts, vendor: str | None) -> Level:
    """How much it matters that the GPUs of ``vendor`` cannot be used. Processors bring one of AMD's or
    Intel's for the display, and nobody misses that beside another vendor's card that an engine has. Whether
    one that AMD's library does not see is such a one, nobody can tell.
    """
    engines, _ = _engines_of_gpus(facts)
    gpus = facts.snapshot.detection.gpus
    others = any(
        engines[position] and not is_integrated(gpu) and _vendor(gpu) != vendor
        for position, gpu in enumerate(gpus)
    )
    if vendor == "nvidia" or not others:
        return Level.PROBLEM
    own = [gpu for gpu in gpus if _vendor(gpu) == vendor]
    if vendor is None or own:
        return Level.NOTE if all(is_integrated(gpu) for gpu in own) else Level.PROBLEM
    return Level.WARNING if _cards_driven(facts, vendor) == 1 else Level.PROBLEM


def _vendor(gpu: GPUInfo) -> str:
    return "nvidia" if gpu.gpu_type is GPUType.NVIDIA else "amd"


def _weighed(level: Level, check: str, found: str, advice: str) -> Finding:
    """There is nothing to do about a note."""
    return Finding(check, level, found) if level is Level.NOTE else Finding(check, level, found, advice)


def _has_cards(facts: NodeFacts, vendor: str) -> bool:
    """Whether a vendor's driver holds a card of this machine."""
    return _cards_driven(facts, vendor) > 0


def _cards_driven(facts: NodeFacts, vendor: str) -> int:
    driver = _KERNEL_DRIVERS[vendor]
    return sum(card.vendor == vendor and card.driver == driver for card in facts.pci_gpus or ())


def _access_advice(user: str, file: DeviceFile) -> str:
    if file.group in (None, "root", "nogroup") or not (file.mode or 0) & 0o060:
        return f"let a group use it by a udev rule (GROUP=render, MODE=0660) and add {user} to that group"
    return f"run `sudo usermod -aG {file.group} {user}` and log in again (a service: restart it)"


def check_engines_of_gpus(facts: NodeFacts) -> Iterator[Finding]:
    """Of each GPU: the installed engines that list it, or why none does."""
    gpus = facts.snapshot.detection.gpus
    engines, reasons = _engines_of_gpus(facts)
    card = any(engines[position] for position, gpu in enumerate(gpus) if not is_integrated(gpu))
    for position, gpu in enumerate(gpus):
        what = f"{gpu.device_name} ({gpu.gfx_version or gpu.compute_capability or 'chip unknown'})"
        if engines[position]:
            yield Finding("gpu", Level.OK, f"{what} is listed by {', '.join(engines[position])}")
        else:
            found = f"no engine can use {what}: {'; '.join(reasons) or 'none is installed'}"
            advice = "install an engine built for this chip and check that its --list-devices names the GPU"
            level = Level.NOTE if card and is_integrated(gpu) else Level.PROBLEM
            yield _weighed(level, "gpu", found, advice)
        yield from _chip_notes(what, gpu)


def _engines_of_gpus(facts: NodeFacts) -> tuple[dict[int, list[str]], list[str]]:
    """The engines that list each GPU, by its position, and why others do not."""
    gpus = facts.snapshot.detection.gpus
    engines: dict[int, list[str]] = {position: [] for position in range(len(gpus))}
    reasons: list[str] = []
    for status in facts.statuses:
        row = BACKENDS[status.backend]
        if row.device_api is DeviceAPI.CPU:
            continue
        if not status.available:
            if any(gpu.gpu_type in row.gpu_types for gpu in gpus):
                reasons.append(f"{status.backend}: {status.reason}")
            continue
        usable, why_not = usable_gpus(row, gpus, status.devices, DEFAULT_POLICY)
        for item in usable:
            engines[item.position].append(status.backend.value)
        reasons.extend(f"{status.backend}: {reason}" for reason in why_not)
    return engines, reasons


def _chip_notes(what: str, gpu: GPUInfo) -> Iterator[Finding]:
    for note in (note for note in gpu.notes if not _is_by_nature(gpu, note)):
        advice = "update the driver and its library; what is not known is not planned with"
        yield Finding("gpu", Level.WARNING, f"{what}: {note}", advice)
    if gpu.gfx_version is not None and gpu.gfx_version not in VLLM_ROCM_GFX:
        family = classify_gfx(gpu.gfx_version).family
        chip = f" ({family})" if family is not None else ""
        found = f"{gpu.gfx_version}{chip} is not among the chips that vLLM's documentation names"
        yield Finding("gpu", Level.NOTE, f"{found}: use GGUF models on it")
    capability = _version(gpu.compute_capability)
    if capability is not None and capability < VLLM_CUDA_CAPABILITY:
        least = ".".join(map(str, VLLM_CUDA_CAPABILITY))
        found = f"{what}: vLLM needs compute capability {least} or higher"
        yield Finding("gpu", Level.NOTE, f"{found}: use GGUF models on it")


def _is_by_nature(gpu: GPUInfo, note: str) -> bool:
    """Whether a note tells how such chips are made, and not that something failed."""
    if note.startswith("memory: "):
        return "memory: shared with" in note or (gpu.unified_memory and "NOT_SUPPORTED" in note)
    chip = classify_gfx(gpu.gfx_version) if gpu.gfx_version is not None else None
    return chip is not None and chip.family is not None and note == chip.note


def _version(text: str | None) -> tuple[int, ...] | None:
    parts = (text or "").split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None
