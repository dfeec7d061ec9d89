"""What the API says of nodes, field by field, for every kind of machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.placement.builders import (
    all_there,
    amd,
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
    usage,
)
from xgen_ray.hardware.types import GPUInfo, GPUType, NodeSnapshot
from xgen_ray.models import ModelFormat, Shelf, ShelvedModel
from xgen_ray.placement import DEFAULT_POLICY, Outstanding
from xgen_ray.placement.types import Backend, BackendStatus
from xgen_ray.schema import GPUsReport
from xgen_ray.serving.fleet_reports import badges, gpus_report, nodes_report, shelves_report
from xgen_ray.serving.node_state import GPU_TYPE_LABEL, NodeIdentity, NodeState, Versions
from xgen_ray.serving.nodes import NodesSeen, SilentNode
from xgen_ray.serving.state import ControlState

GIB = 2**30
VEGA = replace(amd(0, "AMD Radeon RX Vega 64", "gfx900", 8 * GIB), gpu_type=GPUType.UNKNOWN)
M2 = GPUInfo(GPUType.APPLE_MPS, 0, "Apple M2 Max", memory_total_bytes=64 * GIB, unified_memory=True)
CPU_ENGINE = there(Backend.LLAMA_SERVER_CPU)


def state(
    snapshot: NodeSnapshot, *engines: BackendStatus, name: str = "box", method: str = "amdsmi"
) -> NodeState:
    detection = replace(snapshot.detection, detection_method=method)
    return NodeState(
        node=NodeIdentity(name, name, "127.0.0.1", {GPU_TYPE_LABEL: "x"}),
        snapshot=replace(snapshot, detection=detection),
        statuses=engines or all_there(snapshot),
        usage=usage(snapshot, [None] * len(detection.gpus)),
        leases=(),
        outstanding=Outstanding(),
        taken=frozenset(),
        leased=(),
        versions=Versions("1", "2", "3"),
        settings="",
    )


def report(*states: NodeState, silent: tuple[SilentNode, ...] = ()) -> GPUsReport:
    return gpus_report(nodes_report(NodesSeen(states, silent), ControlState(), DEFAULT_POLICY))


@pytest.mark.parametrize(
    ("gpu", "method", "told", "runtime", "recommended", "badge"),
    [
        (
            rtx4090(),
            "pynvml",
            {"name": "NVIDIA GeForce RTX 4090", "type": "cuda", "memory_gb": 24.0, "memory": "24GB"},
            "cuda",
            "vllm",
            "CUDA GPU",
        ),
        (
            h100(),
            "pynvml",
            {"name": h100().device_name, "type": "cuda", "memory_gb": 80.0, "memory": "80GB"},
            "cuda",
            "vllm",
            "CUDA GPU",
        ),
        (
            rx7900xtx(),
            "amdsmi",
            {"name": "AMD Radeon RX 7900 XTX", "type": "rocm", "memory_gb": 24.0, "memory": "24GB"},
            "rocm",
            "vllm",
            "ROCm GPU",
        ),
        (
            strix_halo(carve_out=96 * GIB),
            "amdsmi",
            {"memory_gb": 96.0, "memory": "96GB", "unified_memory": True, "shared_memory_bytes": 56 * GIB},
            "rocm",
            "vllm",
            "ROCm GPU",
        ),
        (
            mi300x(),
            "amdsmi",
            {"type": "rocm", "gpu_type": "amd_cdna", "memory_gb": 192.0, "memory": "192GB"},
            "rocm",
            "vllm",
            "ROCm GPU",
        ),
        (VEGA, "amdsmi", {"type": "gpu", "gpu_type": "unknown", "memory": "8GB"}, "gpu", None, "GPU"),
        (M2, "system_profiler", {"type": "metal", "memory": "64GB"}, "metal", None, "Metal GPU"),
    ],
    ids=["nvidia", "nvidia-datacentre", "rdna", "rdna-apu", "cdna", "vega", "apple"],
)
def test_one_gpu_field_by_field(
    gpu: GPUInfo,
    method: str,
    told: dict[str, object],
    runtime: str,
    recommended: str | None,
    badge: str,
) -> None:
    snapshot = node(gpu)
    answer = report(state(snapshot, method=method))
    assert answer.success is True
    assert answer.gpu_type == runtime
    assert answer.detection_method == method
    assert answer.badges == answer.nodes[0].badges == (badge,)
    if recommended is not None:
        assert answer.recommended_backend == recommended
    (one,) = answer.gpus
    fields = one.model_dump()
    assert {name: fields[name] for name in told} == told
    assert (one.id, one.available, one.node, one.name) == (0, True, "box", gpu.device_name)
    assert one.label == f"[0] {gpu.device_name} ({one.type}, {one.memory})"
    assert answer.nodes[0].gpus == answer.gpus
    assert answer.nodes[0].available_backends == answer.available_backends


def test_the_label_is_the_origins_own_example() -> None:
    assert report(state(node(rx7900xtx()))).gpus[0].label == "[0] AMD Radeon RX 7900 XTX (rocm, 24GB)"


def test_an_nvidia_card_without_vulkan_is_a_cuda_gpu() -> None:
    """The documents' own case: the page said "CPU only"."""
    snapshot = node(rtx4090())
    no_vulkan = BackendStatus(Backend.LLAMA_SERVER_VULKAN, False, "llama-server-vulkan is not on PATH")
    answer = report(state(snapshot, no_vulkan, CPU_ENGINE, method="pynvml"))
    assert answer.badges == ("CUDA GPU",)
    assert answer.gpu_type == "cuda"
    assert answer.available_backends == (Backend.LLAMA_SERVER_CPU,)


def test_a_gpu_that_does_not_tell_its_memory_is_there_all_the_same() -> None:
    answer = report(state(node(replace(gb10(), memory_total_bytes=None))))
    assert (answer.gpus[0].memory_gb, answer.gpus[0].memory) == (None, None)
    assert answer.gpus[0].label == f"[0] {gb10().device_name} (cuda)"
    assert answer.badges == ("CUDA GPU",)


def test_a_mixed_node_has_all_its_gpus_and_a_badge_for_each_kind() -> None:
    answer = report(state(node(rtx4090(), igpu()), method="pynvml"))
    assert [(gpu.id, gpu.type) for gpu in answer.gpus] == [(0, "cuda"), (1, "rocm")]
    assert answer.badges == ("CUDA GPU", "ROCm GPU")
    assert answer.gpu_type == "cuda"
    assert answer.gpus[1].label == "[1] AMD Radeon Graphics (rocm, 512MB)"


def test_a_machine_without_a_gpu_says_so() -> None:
    answer = report(state(node(on=host()), CPU_ENGINE, method="cpu_fallback"))
    assert answer.success is True
    assert answer.gpus == ()
    assert (answer.gpu_type, answer.recommended_backend) == ("cpu", "cpu")
    assert answer.available_backends == (Backend.LLAMA_SERVER_CPU,)
    assert answer.detection_method == "cpu_fallback"
    assert answer.badges == ("CPU only",)


def test_a_fleet_has_every_nodes_gpus_and_its_best_kind() -> None:
    cpu = state(node(on=host()), CPU_ENGINE, name="a", method="cpu_fallback")
    rocm = state(node(rx7900xtx(), rx7900xtx(1)), name="b")
    cuda = state(node(rtx4090()), name="c", method="pynvml")
    answer = report(rocm, cuda, cpu)
    assert [node.node for node in answer.nodes] == ["a", "b", "c"]
    assert [(gpu.node, gpu.id) for gpu in answer.gpus] == [("b", 0), ("b", 1), ("c", 0)]
    assert (answer.gpu_type, answer.detection_method) == ("cuda", "pynvml")
    assert answer.badges == ("CUDA GPU", "ROCm GPU")
    assert [node.badges for node in answer.nodes] == [("CPU only",), ("ROCm GPU",), ("CUDA GPU",)]


def test_a_node_that_gives_no_answer_is_not_called_a_cpu() -> None:
    silent = SilentNode(NodeIdentity("n9", "far", "10.0.0.9"), "its owner has not answered in 12 s")
    (told,) = report(silent=(silent,)).nodes
    assert (told.badges, told.schedulable, told.reason) == ((), False, silent.reason)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([], ("CPU only",)),
        (["rocm", "cuda", "rocm"], ("CUDA GPU", "ROCm GPU")),
        (["gpu"], ("GPU",)),
    ],
)
def test_badges(kinds: list[str], told: tuple[str, ...]) -> None:
    assert badges(kinds) == told


def test_the_same_model_on_two_nodes_is_one() -> None:
    small = ShelvedModel(Path("/models/a.gguf"), "a", ModelFormat.GGUF, 10)
    other = replace(small, size_bytes=11)
    told = shelves_report({"n2": Shelf((small,)), "n1": Shelf((small, other), ("/x cannot be read",))})
    assert [(one.model, one.size_bytes, one.nodes) for one in told.models] == [
        ("/models/a.gguf", 10, ("n1", "n2")),
        ("/models/a.gguf", 11, ("n1",)),
    ]
    assert told.incomplete == ("n1: /x cannot be read",)
