"""AMD GPUs through AMD's own library, ``amdsmi``."""

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from xgen_ray.hardware.fields import CardReader, left_out
from xgen_ray.hardware.gfx import classify_gfx, parse_gfx
from xgen_ray.hardware.pci import normalise_pci
from xgen_ray.hardware.types import DetectorReport, GPUInfo, GPUProcess, GPUType, GPUUsage

NAME = "amdsmi"

_FUSION_FLAG = 0x1  # in asic_info["flags"] of newer libraries: the GPU is part of an APU
_ROCR_UUID = re.compile(r"GPU-[0-9a-f]{16}")  # the spelling that ROCR_VISIBLE_DEVICES takes

# What amdsmi_init answers when a person can mend it, by status name.
_INIT_ADVICE = {
    "AMDSMI_STATUS_DRIVER_NOT_LOADED": "driver not loaded; load the amdgpu kernel module",
    "AMDSMI_STATUS_NO_PERM": "no permission on /dev/kfd or /dev/dri; join the groups render and video, "
    "or pass both devices into the container",
}


class AmdUnavailable(Exception):
    """amdsmi cannot be used here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class AsicFacts:
    """What the chip says of itself: ``integrated`` is None where nothing tells."""

    name: str
    gpu_type: GPUType
    gfx: str | None
    integrated: bool | None
    notes: tuple[str, ...]


def read_asic(asic: dict[str, Any]) -> AsicFacts:
    """The facts in ``amdsmi_get_gpu_asic_info``'s answer, each checked: "N/A" stands for "not known"."""
    name = asic.get("market_name")
    name = name if isinstance(name, str) and name not in ("", "N/A") else "AMD GPU"
    gfx, refused = parse_gfx(asic.get("target_graphics_version"))
    if gfx is None:
        return AsicFacts(name, GPUType.UNKNOWN, None, _fusion(asic), (refused,) if refused else ())
    row = classify_gfx(gfx)
    integrated = _fusion(asic)
    if integrated is None:
        integrated = row.integrated
    if integrated is None and row.family is not None:
        integrated = "MI300A" in name
    return AsicFacts(name, row.gpu_type, gfx, integrated, (row.note,) if row.note else ())


def _fusion(asic: dict[str, Any]) -> bool | None:
    flags = asic.get("flags")
    return bool(flags & _FUSION_FLAG) if isinstance(flags, int) else None


def detect_amdsmi() -> DetectorReport:
    """Every AMD GPU that amdsmi sees, in HIP order."""
    try:
        with _session() as smi:
            cards, reason = _read_cards(smi)
            return DetectorReport(NAME, tuple(gpu for gpu, _ in cards), reason)
    except AmdUnavailable as unavailable:
        return DetectorReport(NAME, reason=str(unavailable))


def read_amdsmi_usage() -> tuple[tuple[GPUUsage, ...], str | None]:
    """Live figures of every AMD GPU, and why some or all are missing."""
    try:
        with _session() as smi:
            cards, reason = _read_cards(smi)
            return tuple(_usage(gpu, reader) for gpu, reader in cards), reason
    except AmdUnavailable as unavailable:
        return (), str(unavailable)


def read_amdsmi_processes() -> tuple[tuple[GPUProcess, ...], str | None]:
    """The memory of every process on every AMD GPU, and why some or all are missing."""
    try:
        with _session() as smi:
            cards, reason = _read_cards(smi)
            return tuple(one for gpu, card in cards for one in _processes(gpu, card)), reason
    except AmdUnavailable as unavailable:
        return (), str(unavailable)


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """An initialised amdsmi module, shut down afterwards."""
    smi = _import_amdsmi()
    try:
        smi.amdsmi_init()
    except smi.AmdSmiException as error:
        status = _status(error)
        raise AmdUnavailable(_INIT_ADVICE.get(status, f"amdsmi_init: {status}")) from error
    try:
        yield smi
    except smi.AmdSmiException as error:
        raise AmdUnavailable(f"the GPUs cannot be listed: {_status(error)}") from error
    finally:
        with contextlib.suppress(smi.AmdSmiException):
            smi.amdsmi_shut_down()


def _import_amdsmi() -> Any:
    """The module. Without its native library its import prints to stdout and raises KeyError."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            import amdsmi
    except ModuleNotFoundError as error:
        if error.name == "amdsmi":
            raise AmdUnavailable("not installed; pip install 'xgen-ray[amd]'") from error
        raise AmdUnavailable(f"its import failed: {error}") from error
    except KeyError as error:
        said = printed.getvalue().strip().splitlines()
        detail = f" ({said[0]})" if said else ""
        raise AmdUnavailable(
            f"library libamd_smi.so not found{detail}; install ROCm's amd-smi-lib, or set ROCM_PATH"
        ) from error
    except AttributeError as error:
        raise AmdUnavailable(
            f"package and library do not fit: {error}; install the amdsmi of the same ROCm release"
        ) from error
    except (ImportError, OSError) as error:
        raise AmdUnavailable(f"its import failed: {error}") from error
    return amdsmi


def _status(error: Exception) -> str:
    """``AMDSMI_STATUS_NOT_SUPPORTED`` from an amdsmi exception; the plain message of any other."""
    info = getattr(error, "err_info", None)
    if isinstance(info, str):
        return info.split(" - ")[0]
    return f"{type(error).__name__}: {error}"


def _read_cards(smi: Any) -> tuple[list[tuple[GPUInfo, CardReader]], str | None]:
    """Every card with a reader for further questions, in HIP order; and why some or all are missing."""
    handles = smi.amdsmi_get_processor_handles()
    if not handles:
        return [], "no AMD GPU on this machine"
    cards: list[tuple[GPUInfo, CardReader]] = []
    hip_indices: list[int | None] = []
    lost: list[str] = []
    for position, handle in enumerate(handles):
        reader = CardReader(smi, handle, (smi.AmdSmiException,), _status)
        gpu, hip_index = _read_card(smi, reader)
        if gpu is None:
            lost.append(f"GPU {position}: {reader.notes[0]}")
        else:
            cards.append((gpu, reader))
            hip_indices.append(hip_index)
    return _numbered(cards, hip_indices), left_out(lost, len(handles))


def _read_card(smi: Any, card: CardReader) -> tuple[GPUInfo | None, int | None]:
    """One card and its HIP index; no card when neither chip nor address can be read."""
    asic = card.ask("gfx", "amdsmi_get_gpu_asic_info")
    address = normalise_pci(card.ask("pci", "amdsmi_get_gpu_device_bdf"))
    if asic is None and address is None:
        return None, None
    facts = read_asic(asic) if asic is not None else AsicFacts("AMD GPU", GPUType.UNKNOWN, None, None, ())
    memory = smi.AmdSmiMemoryType
    vram = card.ask("memory", "amdsmi_get_gpu_memory_total", memory.VRAM)
    shared = None
    if facts.integrated:
        shared = card.ask("shared memory", "amdsmi_get_gpu_memory_total", memory.GTT)
    enumeration = card.ask("HIP index", "amdsmi_get_gpu_enumeration_info") or {}
    hip_index = enumeration.get("hip_id")
    driver = card.ask("driver", "amdsmi_get_gpu_driver_info", optional=True) or {}
    gpu = GPUInfo(
        gpu_type=facts.gpu_type,
        device_index=0,
        device_name=facts.name,
        memory_total_bytes=vram,
        gfx_version=facts.gfx,
        pci_bus_id=address,
        uuid=_uuid(enumeration, card),
        integrated=facts.integrated,
        unified_memory=bool(facts.integrated),
        shared_memory_total_bytes=shared,
        driver_version=_text(driver.get("driver_version")),
        detected_by=NAME,
        notes=(*facts.notes, *card.notes),
    )
    return gpu, hip_index if isinstance(hip_index, int) else None


def _uuid(enumeration: dict[str, Any], card: CardReader) -> str | None:
    """The UUID that ROCR_VISIBLE_DEVICES takes, or else the library's own: an APU has no ROCr UUID."""
    hip_uuid = enumeration.get("hip_uuid")
    if isinstance(hip_uuid, str) and _ROCR_UUID.fullmatch(hip_uuid):
        return hip_uuid
    return _text(card.ask("uuid", "amdsmi_get_gpu_device_uuid", optional=True))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value not in ("", "N/A") else None


def _numbered(
    cards: list[tuple[GPUInfo, CardReader]], hip_indices: list[int | None]
) -> list[tuple[GPUInfo, CardReader]]:
    """The cards with their HIP indices, in that order. If one is missing or doubled, none can be trusted,
    and the order of PCI addresses stands in, which is what HIP follows by default.
    """
    known = [index for index in hip_indices if index is not None]
    if len(set(known)) == len(cards):
        numbered = zip(known, cards, strict=True)
        notes: tuple[str, ...] = ()
    else:
        by_address = sorted(cards, key=lambda card: (card[0].pci_bus_id is None, card[0].pci_bus_id or ""))
        numbered = zip(range(len(cards)), by_address, strict=True)
        notes = ("HIP index: not known for every GPU; numbered by PCI address",)
    return [
        (replace(gpu, device_index=index, notes=(*gpu.notes, *notes)), reader)
        for index, (gpu, reader) in sorted(numbered, key=lambda pair: pair[0])
    ]


def _usage(gpu: GPUInfo, card: CardReader) -> GPUUsage:
    memory = card.library.AmdSmiMemoryType
    used = card.ask("memory", "amdsmi_get_gpu_memory_usage", memory.VRAM)
    total = gpu.memory_total_bytes
    shared = None
    if gpu.integrated:
        shared = card.ask("shared memory", "amdsmi_get_gpu_memory_usage", memory.GTT)
    activity = card.ask("activity", "amdsmi_get_gpu_activity") or {}
    power = card.ask("power", "amdsmi_get_power_info") or {}
    return GPUUsage(
        device_index=gpu.device_index,
        uuid=gpu.uuid,
        pci_bus_id=gpu.pci_bus_id,
        memory_used_bytes=used,
        memory_free_bytes=max(0, total - used) if total is not None and used is not None else None,
        shared_memory_used_bytes=shared,
        utilization_percent=_number(activity.get("gfx_activity")),
        temperature_celsius=_temperature(card),
        power_watts=_first(
            power.get("current_socket_power"), power.get("average_socket_power"), power.get("socket_power")
        ),
    )


def _processes(gpu: GPUInfo, card: CardReader) -> list[GPUProcess]:
    listed = card.ask("processes", "amdsmi_get_gpu_process_list", optional=True) or ()
    found: list[GPUProcess] = []
    for process in listed:
        memory = process.get("memory_usage") or {}
        found.append(
            GPUProcess(
                pid=process["pid"],
                device_index=gpu.device_index,
                uuid=gpu.uuid,
                pci_bus_id=gpu.pci_bus_id,
                memory_bytes=_bytes(memory.get("vram_mem")),
                shared_memory_bytes=_bytes(memory.get("gtt_mem")) if gpu.integrated else None,
            )
        )
    return found


def _bytes(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _temperature(card: CardReader) -> float | None:
    """Edge temperature, or the hottest spot's where a card (CDNA) has no edge sensor."""
    sensors = card.library.AmdSmiTemperatureType
    now = card.library.AmdSmiTemperatureMetric.CURRENT
    return _first(
        *(
            card.ask("temperature", "amdsmi_get_temp_metric", sensor, now, optional=True)
            for sensor in (sensors.EDGE, sensors.HOTSPOT)
        )
    )


def _first(*values: object) -> float | None:
    """The first that is a figure; amdsmi says "N/A" where there is none."""
    return next((figure for value in values if (figure := _number(value)) is not None), None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
