"""What a node tells Ray of itself, as custom resources and labels: a pure function of what was found.

Ray takes both when a node starts and never changes them, so they say what is *there*, not what is free.
Control places by the snapshot; these are for Ray's own selectors, for ``ray status`` and for people.

Resources, as counts (Ray needs whole numbers):

======================  =========================================================================
``nvidia``              NVIDIA GPUs; a MIG slice counts as one
``amd_rdna``            Radeon GPUs, also those inside a processor
``amd_cdna``            Instinct GPUs
``apple_mps``           Apple GPUs
``gfx1151``, ...        AMD GPUs of that gfx id
``sm_90``, ...          NVIDIA GPUs of that compute capability: 9.0 is ``sm_90``, 12.1 is ``sm_121``
``cpu_node``            1 on a node without a usable GPU
======================  =========================================================================

A node with GPUs of several vendors has the resources of each. A GPU whose type is not known (a Vega
card is neither RDNA nor CDNA) is usable when an engine on this node lists it; it counts by its gfx id.

Labels, all with the prefix ``xgen-ray/``; a fact that is not known has no label:

======================  =========================================================================
``name``                what people call the node
``version``             xgen-ray's own version there
``gpu-type``            type of the primary GPU; ``cpu`` on a node without a usable one
``gfx``                 gfx id of the primary GPU, or of the first that has one
``compute-capability``  the same for NVIDIA: ``9.0``
``gpu-memory``          the largest GPU's memory, as a class: see ``MEMORY_CLASSES``
``ram``                 the machine's memory, in the same classes
``gpu-integrated``      ``true`` or ``false``, of the primary GPU
``gpu-nvidia``, ...     ``true`` for every type of GPU that is there, by the resource's name
``gfx1151``, ...        ``true`` for every gfx id that is there
``sm_90``, ...          ``true`` for every compute capability that is there
``backend-...``         ``true`` for every backend that can really start: ``backend-llama-server-cpu``
======================  =========================================================================
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xgen_ray import __version__
from xgen_ray.hardware.types import GPUInfo, GPUType, NodeSnapshot
from xgen_ray.placement.choose import available_backends
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import GIB
from xgen_ray.placement.types import BackendStatus

LABEL_PREFIX: Final = "xgen-ray/"
# How long a label's value, and the part of its key after the prefix, may be.
LABEL_LENGTH: Final = 63
CPU_NODE: Final = "cpu_node"

# A memory class is the largest of these (GiB) that is there. A device reports a little less than it is
# sold with (a "24 GB" L4 says 22.5 GiB), so nine tenths of a class are enough for it.
MEMORY_CLASSES: Final = (
    *(4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 192, 256, 288, 384, 512, 768),
    *(1024, 1536, 2048, 4096),
)
_ENOUGH: Final = 0.9
_TRUE: Final = "true"
_NOT_IN_LABELS: Final = re.compile(r"[^A-Za-z0-9_.-]+")
_ENDS: Final = "_.-"
_KNOWN: Final = frozenset({GPUType.NVIDIA, GPUType.AMD_RDNA, GPUType.AMD_CDNA, GPUType.APPLE_MPS})


@dataclass(frozen=True, slots=True)
class NodeTags:
    """What ``ray start`` is told: ``resources`` are whole numbers, ``labels`` obey Ray's label syntax."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def tags_of(snapshot: NodeSnapshot, statuses: Sequence[BackendStatus], name: str) -> NodeTags:
    """The tags of a node that people call ``name``. ``statuses`` come from discovery on it.

    A ``name`` that is no label value is made one by ``label_value``.
    """
    backends = tuple(status for status in available_backends(snapshot, statuses) if status.available)
    drives_unknown = any(GPUType.UNKNOWN in BACKENDS[status.backend].gpu_types for status in backends)
    gpus = tuple(gpu for gpu in snapshot.detection.gpus if gpu.gpu_type in _KNOWN or drives_unknown)
    labels = {"name": label_value(name), "version": label_value(__version__)}
    labels |= _machine_labels(snapshot, gpus)
    labels |= {f"backend-{status.backend}": _TRUE for status in backends}
    return NodeTags(
        resources=_resources(gpus),
        labels={LABEL_PREFIX + key: value for key, value in labels.items() if value},
    )


def label_value(text: str) -> str:
    """``text`` as a label's value: whatever Ray refuses becomes a dash, and at most 63 characters stay.

    Empty when nothing is left of it.
    """
    return _NOT_IN_LABELS.sub("-", text).strip(_ENDS)[:LABEL_LENGTH].rstrip(_ENDS)


def memory_class(size_bytes: int) -> str:
    """``24g`` for a card that is sold with 24 GB; ``under-4g`` below the smallest class."""
    reached = [size for size in MEMORY_CLASSES if size_bytes >= size * GIB * _ENOUGH]
    return f"{reached[-1]}g" if reached else f"under-{MEMORY_CLASSES[0]}g"


def least_of_class(name: str) -> int | None:
    """The least memory that a node of this class has: 21.6 GiB for ``24g``. None for what is no class."""
    found = re.fullmatch(r"(\d+)g", name)
    return int(int(found[1]) * GIB * _ENOUGH) if found else None


def capability_resource(compute_capability: str) -> str | None:
    """``sm_90`` for ``9.0``. None for what is no compute capability."""
    found = re.fullmatch(r"(\d+)\.(\d+)", compute_capability)
    return f"sm_{found[1]}{found[2]}" if found else None


def device_classes(gpu: GPUInfo) -> tuple[str, ...]:
    """The names of the resources that count this GPU, the most telling first: ``sm_90``, ``nvidia``.

    A GPU of which nothing is known has its vendor's word for it alone.
    """
    return tuple(reversed(_kinds(gpu))) or (gpu.gpu_type.value,)


def _resources(gpus: Sequence[GPUInfo]) -> dict[str, float]:
    if not gpus:
        return {CPU_NODE: 1.0}
    return {
        name: float(count) for name, count in Counter(kind for gpu in gpus for kind in _kinds(gpu)).items()
    }


def _kinds(gpu: GPUInfo) -> list[str]:
    """The names of the resources that count this GPU."""
    kinds = [gpu.gpu_type.value] if gpu.gpu_type in _KNOWN else []
    if gpu.gfx_version:
        kinds.append(gpu.gfx_version)
    if gpu.compute_capability and (capability := capability_resource(gpu.compute_capability)):
        kinds.append(capability)
    return kinds


def _machine_labels(snapshot: NodeSnapshot, gpus: Sequence[GPUInfo]) -> dict[str, str]:
    labels = {"ram": memory_class(snapshot.host.memory_total_bytes)}
    if not gpus:
        return labels | {"gpu-type": GPUType.CPU.value}
    primary = next((gpu for gpu in gpus if gpu == snapshot.detection.primary_gpu), gpus[0])
    best_first = (primary, *gpus)
    labels["gpu-type"] = primary.gpu_type.value
    labels["gfx"] = label_value(next((gpu.gfx_version for gpu in best_first if gpu.gfx_version), ""))
    labels["compute-capability"] = label_value(
        next((gpu.compute_capability for gpu in best_first if gpu.compute_capability), "")
    )
    if primary.integrated is not None:
        labels["gpu-integrated"] = str(primary.integrated).lower()
    sizes = [size for gpu in gpus if (size := _memory_bytes(gpu, snapshot)) is not None]
    if sizes:
        labels["gpu-memory"] = memory_class(max(sizes))
    for kind in {kind for gpu in gpus for kind in _kinds(gpu)}:
        labels[f"gpu-{kind}" if kind in _KNOWN else label_value(kind)] = _TRUE
    return labels


def _memory_bytes(gpu: GPUInfo, snapshot: NodeSnapshot) -> int | None:
    """What the GPU can use of any memory: its own, and of the machine's what it shares."""
    ram = snapshot.host.memory_total_bytes
    if gpu.memory_total_bytes is None:
        return ram if gpu.unified_memory else None
    return gpu.memory_total_bytes + min(gpu.shared_memory_total_bytes or 0, ram)
