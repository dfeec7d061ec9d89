"""What a node tells Ray of itself, over a table of machines, and that Ray takes whatever comes out."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._private.label_utils import validate_node_label_syntax

from tests.placement.builders import (
    all_there,
    gb10,
    h100,
    host,
    igpu,
    mi300x,
    node,
    rtx4090,
    rx7900xtx,
    strix_halo,
    there,
)
from xgen_ray import __version__
from xgen_ray.hardware.types import GPUInfo, GPUType, NodeSnapshot
from xgen_ray.placement.sizes import GIB, MIB
from xgen_ray.placement.tags import (
    CPU_NODE,
    LABEL_PREFIX,
    MEMORY_CLASSES,
    capability_resource,
    label_value,
    memory_class,
    tags_of,
)
from xgen_ray.placement.types import Backend, BackendStatus, EngineDevice


def vega() -> GPUInfo:
    return replace(rx7900xtx(), gpu_type=GPUType.UNKNOWN, device_name="AMD Vega", gfx_version="gfx906")


MACHINES: dict[str, tuple[NodeSnapshot, dict[str, float]]] = {
    "two NVIDIA cards": (node(h100(0), h100(1)), {"nvidia": 2, "sm_90": 2}),
    "unlike NVIDIA cards": (node(h100(0), rtx4090(1)), {"nvidia": 2, "sm_90": 1, "sm_89": 1}),
    "GB10": (node(gb10()), {"nvidia": 1, "sm_121": 1}),
    "APU": (node(strix_halo()), {"amd_rdna": 1, "gfx1151": 1}),
    "card and iGPU": (node(rx7900xtx(0), igpu(1)), {"amd_rdna": 2, "gfx1100": 1, "gfx1036": 1}),
    "Instinct": (node(mi300x(0), mi300x(1)), {"amd_cdna": 2, "gfx942": 2}),
    "two vendors": (node(rtx4090(0), igpu(1)), {"nvidia": 1, "sm_89": 1, "amd_rdna": 1, "gfx1036": 1}),
    "no GPU": (node(), {CPU_NODE: 1}),
}


def labels_of(
    snapshot: NodeSnapshot, statuses: tuple[BackendStatus, ...] = (), name: str = "node-1"
) -> dict[str, str]:
    """Without the prefix, which all have."""
    labels = tags_of(snapshot, statuses, name).labels
    assert all(key.startswith(LABEL_PREFIX) for key in labels)
    return {key.removeprefix(LABEL_PREFIX): value for key, value in labels.items()}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_gpu_is_counted_by_type_and_by_chip(machine: str) -> None:
    snapshot, resources = MACHINES[machine]
    assert tags_of(snapshot, (), "x").resources == resources


def test_the_labels_of_a_node_with_two_vendors() -> None:
    snapshot = node(rtx4090(0), igpu(1), on=host(64 * GIB))
    engines = (
        there(Backend.LLAMA_SERVER_CPU),
        there(Backend.LLAMA_SERVER_CUDA, EngineDevice("CUDA0", "NVIDIA GeForce RTX 4090", 24 * GIB)),
        BackendStatus(Backend.VLLM_CUDA, False, "not installed"),
        # It would start, but this machine has nothing for it.
        there(Backend.LLAMA_SERVER_METAL, EngineDevice("MTL0", "Apple M2", 24 * GIB)),
    )
    assert labels_of(snapshot, engines) == {
        "name": "node-1",
        "version": __version__,
        "gpu-type": "nvidia",
        "gfx": "gfx1036",
        "compute-capability": "8.9",
        "gpu-memory": "24g",
        "ram": "64g",
        "gpu-integrated": "false",
        "gpu-nvidia": "true",
        "gpu-amd_rdna": "true",
        "gfx1036": "true",
        "sm_89": "true",
        "backend-llama-server-cpu": "true",
        "backend-llama-server-cuda": "true",
    }


def test_the_labels_of_a_node_without_gpu() -> None:
    engines = (there(Backend.LLAMA_SERVER_CPU), there(Backend.VLLM_CPU))
    assert labels_of(node(on=host(30 * GIB)), engines) == {
        "name": "node-1",
        "version": __version__,
        "gpu-type": "cpu",
        "ram": "32g",
        "backend-llama-server-cpu": "true",
        "backend-vllm-cpu": "true",
    }


def test_the_single_labels_are_those_of_the_primary_gpu() -> None:
    card, inside = rx7900xtx(0), igpu(1)
    swapped = node(inside, card)
    swapped = replace(swapped, detection=replace(swapped.detection, primary_gpu=card))
    labels = labels_of(swapped)
    assert (labels["gfx"], labels["gpu-integrated"], labels["gpu-memory"]) == ("gfx1100", "false", "24g")
    assert labels["gfx1100"] == labels["gfx1036"] == "true"


def test_a_gpu_of_unknown_type_counts_where_an_engine_lists_it() -> None:
    snapshot = node(vega())
    assert tags_of(snapshot, (), "x").resources == {CPU_NODE: 1}
    vulkan = there(Backend.LLAMA_SERVER_VULKAN, EngineDevice("Vulkan0", "AMD Vega", 24 * GIB))
    assert tags_of(snapshot, (vulkan,), "x").resources == {"gfx906": 1}
    assert labels_of(snapshot, (vulkan,))["gpu-type"] == "unknown"


def test_what_is_not_known_has_no_label() -> None:
    bare = GPUInfo(GPUType.NVIDIA, 0, "NVIDIA something")
    labels = labels_of(node(bare))
    assert not {"gfx", "compute-capability", "gpu-memory", "gpu-integrated"} & set(labels)
    assert tags_of(node(bare), (), "x").resources == {"nvidia": 1}


@pytest.mark.parametrize(
    ("snapshot", "expected"),
    [
        (node(strix_halo(GIB, 56 * GIB), on=host(64 * GIB)), "48g"),
        (node(strix_halo(GIB, 500 * GIB), on=host(30 * GIB)), "32g"),
        (node(gb10(), on=host(119 * GIB)), "128g"),
    ],
)
def test_a_gpu_in_the_processor_counts_the_memory_that_it_shares(
    snapshot: NodeSnapshot, expected: str
) -> None:
    assert labels_of(snapshot)["gpu-memory"] == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (3 * GIB, "under-4g"),
        (8188 * MIB, "8g"),
        (23034 * MIB, "24g"),  # an L4
        (24564 * MIB, "24g"),
        (81559 * MIB, "80g"),  # an H100
        (143771 * MIB, "141g"),  # an H200
        (192 * GIB, "192g"),
        (10**15, f"{MEMORY_CLASSES[-1]}g"),
    ],
)
def test_memory_classes_are_those_that_cards_are_sold_with(size: int, expected: str) -> None:
    assert memory_class(size) == expected


def test_memory_classes_grow_with_memory() -> None:
    assert list(MEMORY_CLASSES) == sorted(set(MEMORY_CLASSES))


@pytest.mark.parametrize(
    ("capability", "expected"), [("9.0", "sm_90"), ("12.1", "sm_121"), ("10.0", "sm_100"), ("N/A", None)]
)
def test_compute_capabilities_are_named_as_nvidia_does(capability: str, expected: str | None) -> None:
    assert capability_resource(capability) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu-1.lab", "gpu-1.lab"),
        ("Anna's machine", "Anna-s-machine"),
        ("-._x_.-", "x"),
        ("1.2.3+local.4", "1.2.3-local.4"),
        ("a" * 62 + "-b", "a" * 62),
        ("日本", ""),
    ],
)
def test_names_become_label_values(text: str, expected: str) -> None:
    assert label_value(text) == expected


anything = st.text(max_size=80)
gpus = st.builds(
    GPUInfo,
    gpu_type=st.sampled_from(GPUType),
    device_index=st.integers(0, 7),
    device_name=anything,
    memory_total_bytes=st.none() | st.integers(0, 2**45),
    compute_capability=st.none() | anything | st.sampled_from(["8.9", "12.1"]),
    gfx_version=st.none() | st.from_regex(r"gfx[0-9a-f]{3,4}", fullmatch=True),
    integrated=st.none() | st.booleans(),
    unified_memory=st.booleans(),
)


@settings(max_examples=60)
@given(found=st.lists(gpus, max_size=4), name=anything)
def test_ray_takes_whatever_comes_out(found: list[GPUInfo], name: str) -> None:
    snapshot = node(*found)
    tags = tags_of(snapshot, all_there(snapshot), name)
    validate_node_label_syntax(dict(tags.labels))
    assert all(float(count).is_integer() and count >= 1 for count in tags.resources.values())
    assert CPU_NODE not in tags.resources or set(tags.resources) == {CPU_NODE}
    assert not {"CPU", "GPU", "memory", "object_store_memory"} & set(tags.resources)
