"""NVIDIA GPUs through NVIDIA's own library, NVML (``pynvml``, of the distribution nvidia-ml-py)."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from xgen_ray.hardware.fields import CardReader, left_out
from xgen_ray.hardware.pci import normalise_pci
from xgen_ray.hardware.types import DetectorReport, GPUInfo, GPUProcess, GPUType, GPUUsage

NAME = "pynvml"

# Chips that share the system's memory: GB10 (DGX Spark) and the Tegra line (Jetson). NVML reports no
# memory for them. \b keeps GB100 and GB102, which are cards, apart from GB10.
_INTEGRATED = re.compile(r"\b(GB10|Tegra|Jetson|Orin|Xavier|Thor)\b", re.IGNORECASE)
_MIG_PROFILE = re.compile(r"\bMIG\s+(\S+)")
_MIG_ENABLED = 1

# What nvmlInit answers when a person can mend it.
_INIT_ADVICE = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": "library libnvidia-ml.so.1 not found; install the NVIDIA driver",
    "NVML_ERROR_DRIVER_NOT_LOADED": "driver not loaded; load the nvidia kernel module",
    "NVML_ERROR_NO_PERMISSION": "no permission on /dev/nvidiactl",
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "driver and library have different versions; reboot after a "
    "driver update",
}


class NvidiaUnavailable(Exception):
    """NVML cannot be used here; the message is the reason."""


def detect_pynvml() -> DetectorReport:
    """Every NVIDIA GPU that NVML sees, in PCI order; of a GPU in MIG mode its slices instead."""
    try:
        with _session() as nvml:
            cards, reason = _read_cards(nvml)
            return DetectorReport(NAME, tuple(gpu for gpu, _ in cards), reason)
    except NvidiaUnavailable as unavailable:
        return DetectorReport(NAME, reason=str(unavailable))


def read_pynvml_usage() -> tuple[tuple[GPUUsage, ...], str | None]:
    """Live figures of every NVIDIA GPU or slice, and why some or all are missing."""
    try:
        with _session() as nvml:
            cards, reason = _read_cards(nvml)
            return tuple(_usage(gpu, card) for gpu, card in cards), reason
    except NvidiaUnavailable as unavailable:
        return (), str(unavailable)


def read_pynvml_processes() -> tuple[tuple[GPUProcess, ...], str | None]:
    """The memory of every process on every NVIDIA GPU or slice, and why some or all are missing."""
    try:
        with _session() as nvml:
            cards, reason = _read_cards(nvml)
            return tuple(one for gpu, card in cards for one in _processes(gpu, card)), reason
    except NvidiaUnavailable as unavailable:
        return (), str(unavailable)


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """An initialised NVML module, shut down afterwards."""
    try:
        import pynvml
    except ModuleNotFoundError as error:
        if error.name == "pynvml":
            raise NvidiaUnavailable("not installed; pip install 'xgen-ray[nvidia]'") from error
        raise NvidiaUnavailable(f"its import failed: {error}") from error
    except (ImportError, OSError) as error:
        raise NvidiaUnavailable(f"its import failed: {error}") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        name = _error_name(pynvml, error)
        raise NvidiaUnavailable(_INIT_ADVICE.get(name, f"nvmlInit: {name}")) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise NvidiaUnavailable(f"the GPUs cannot be listed: {_error_name(pynvml, error)}") from error
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _error_name(nvml: Any, error: Exception) -> str:
    """``NVML_ERROR_NOT_SUPPORTED`` for an NVML exception; the plain message of any other."""
    value = getattr(error, "value", None)
    for name, constant in vars(nvml).items():
        if name.startswith("NVML_ERROR_") and constant == value:
            return str(name)
    return f"{type(error).__name__}: {error}"


def _reader(nvml: Any, handle: Any) -> CardReader:
    return CardReader(nvml, handle, (nvml.NVMLError,), lambda error: _error_name(nvml, error))


def _read_cards(nvml: Any) -> tuple[list[tuple[GPUInfo, CardReader]], str | None]:
    """Every card or slice with a reader for further questions; and why some or all are missing."""
    count = nvml.nvmlDeviceGetCount()
    if not count:
        return [], "no NVIDIA GPU on this machine"
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        driver = None
    cards: list[tuple[GPUInfo, CardReader]] = []
    lost: list[str] = []
    sliced = False
    for index in range(count):
        try:
            card = _reader(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:
            lost.append(f"GPU {index}: {_error_name(nvml, error)}")
            continue
        gpu = _read_card(card, index, driver)
        if card.failed("name") and card.failed("uuid"):  # fallen off the bus: nothing answers any more
            lost.append(f"GPU {index}: {card.failed('uuid')}")
        elif not _in_mig_mode(card):
            cards.append((gpu, card))
        elif slices := _read_slices(nvml, card, gpu):
            cards.extend(slices)
            sliced = True
        else:
            lost.append(f"GPU {index}: {gpu.device_name} is in MIG mode and has no slice")
    if not lost and not sliced:
        # CUDA leaves out what does not answer, and has a way of its own to count beside MIG mode.
        cards = [(replace(gpu, cuda_index=gpu.device_index), card) for gpu, card in cards]
    return cards, left_out(lost, count)


def _in_mig_mode(card: CardReader) -> bool:
    mode = card.ask("mig", "nvmlDeviceGetMigMode", optional=True)
    return bool(mode) and mode[0] == _MIG_ENABLED


def _read_slices(nvml: Any, parent: CardReader, gpu: GPUInfo) -> list[tuple[GPUInfo, CardReader]]:
    slices: list[tuple[GPUInfo, CardReader]] = []
    for position in range(parent.ask("mig", "nvmlDeviceGetMaxMigDeviceCount") or 0):
        handle = parent.ask("mig", "nvmlDeviceGetMigDeviceHandleByIndex", position, optional=True)
        if handle is not None:  # the numbering has gaps
            card = _reader(nvml, handle)
            slices.append((_read_slice(card, gpu), card))
    return slices


def _read_card(card: CardReader, index: int, driver: str | None) -> GPUInfo:
    name = card.ask("name", "nvmlDeviceGetName") or "NVIDIA GPU"
    integrated = _INTEGRATED.search(name) is not None
    memory = _read_memory(card)
    capability = card.ask("compute capability", "nvmlDeviceGetCudaComputeCapability")
    pci = card.ask("pci", "nvmlDeviceGetPciInfo", optional=integrated)
    uuid = card.ask("uuid", "nvmlDeviceGetUUID")
    notes = card.notes
    if memory is None and integrated:
        notes = (*notes, "memory: shared with the system; budget it from the machine's RAM")
    return GPUInfo(
        gpu_type=GPUType.NVIDIA,
        device_index=index,
        device_name=name,
        memory_total_bytes=memory.total if memory is not None else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        pci_bus_id=normalise_pci(_decoded(pci.busId)) if pci is not None else None,
        uuid=uuid,
        # A card that reports memory of its own and is none of the known shared ones is discrete.
        integrated=True if integrated else (False if memory is not None else None),
        unified_memory=integrated,
        driver_version=driver,
        detected_by=NAME,
        notes=notes,
    )


def _read_slice(card: CardReader, parent: GPUInfo) -> GPUInfo:
    """A MIG slice as a GPU of its own; what NVML does not say of slices is the parent's."""
    name = card.ask("name", "nvmlDeviceGetName") or parent.device_name
    memory = _read_memory(card)
    attributes = card.ask("mig profile", "nvmlDeviceGetAttributes", optional=True)
    profile = _MIG_PROFILE.search(name)
    uuid = card.ask("uuid", "nvmlDeviceGetUUID")
    notes = card.notes
    if attributes is not None and attributes.computeInstanceSliceCount < attributes.gpuInstanceSliceCount:
        notes = (*notes, "memory: shared with the other compute instances of the same GPU instance")
    return GPUInfo(
        gpu_type=GPUType.NVIDIA,
        device_index=parent.device_index,
        device_name=name,
        memory_total_bytes=memory.total if memory is not None else None,
        compute_capability=parent.compute_capability,
        pci_bus_id=parent.pci_bus_id,
        uuid=uuid,
        integrated=parent.integrated,
        driver_version=parent.driver_version,
        mig_profile=profile.group(1) if profile else _profile_of(attributes),
        mig_parent_uuid=parent.uuid,
        detected_by=NAME,
        notes=notes,
    )


def _profile_of(attributes: Any) -> str | None:
    """``1g.10gb`` from a slice's attributes, for drivers that do not put it into the name."""
    if attributes is None:
        return None
    gibibytes = round(attributes.memorySizeMB / 1024)
    compute, whole = attributes.computeInstanceSliceCount, attributes.gpuInstanceSliceCount
    prefix = f"{compute}c." if compute < whole else ""
    return f"{prefix}{whole}g.{gibibytes}gb"


def _read_memory(card: CardReader) -> Any:
    """NVML's memory figures, or None. The second version keeps the driver's reserve out of ``used``;
    drivers before 510 have only the first.
    """
    version = getattr(card.library, "nvmlMemory_v2", None)
    if version is not None:
        memory = card.ask("memory", "nvmlDeviceGetMemoryInfo", version, optional=True)
        if memory is not None:
            return memory
    return card.ask("memory", "nvmlDeviceGetMemoryInfo")


def _decoded(text: str | bytes) -> str:
    return text.decode("ascii", "replace") if isinstance(text, bytes) else text


def _usage(gpu: GPUInfo, card: CardReader) -> GPUUsage:
    """Live figures. Utilisation, heat and power are the whole card's: a slice has none of its own."""
    memory = _read_memory(card)
    rates = card.ask("utilization", "nvmlDeviceGetUtilizationRates", optional=True)
    sensor = card.library.NVML_TEMPERATURE_GPU
    celsius = card.ask("temperature", "nvmlDeviceGetTemperature", sensor, optional=True)
    milliwatts = card.ask("power", "nvmlDeviceGetPowerUsage", optional=True)
    return GPUUsage(
        device_index=gpu.device_index,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        memory_used_bytes=memory.used if memory is not None else None,
        memory_free_bytes=memory.free if memory is not None else None,
        utilization_percent=float(rates.gpu) if rates is not None else None,
        temperature_celsius=float(celsius) if celsius is not None else None,
        power_watts=milliwatts / 1000 if milliwatts is not None else None,
    )


def _processes(gpu: GPUInfo, card: CardReader) -> list[GPUProcess]:
    """Each process once: one that computes and draws (Vulkan) is on both lists, with the same memory."""
    memory: dict[int, int | None] = {}
    for kind in ("Compute", "Graphics"):
        name = f"nvmlDeviceGet{kind}RunningProcesses"
        found = card.ask("processes", name, optional=True)
        if found is None:  # drivers before 510
            found = card.ask("processes", f"{name}_v2", optional=True)
        for process in found or ():
            known = memory.get(process.pid)
            memory[process.pid] = process.usedGpuMemory if known is None else known
    return [GPUProcess(pid, gpu.device_index, gpu.uuid, gpu.pci_bus_id, used) for pid, used in memory.items()]
