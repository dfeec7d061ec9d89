"""What an engine really uses, of real processes and of the vendors' libraries over their stand-ins."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.native.build import build_amdsmi, build_nvml
from tests.hardware.lab import Lab
from tests.serving.lease_builders import GIB, card, snapshot, usage
from xgen_ray.hardware import GPUProcess, detect_in_child, take_processes
from xgen_ray.placement.claims import RAM, Claim, gpu_key
from xgen_ray.serving.leases import EngineUse
from xgen_ray.serving.measure import Growth, RamUse, engine_use, gpus_of, ram_of, tree_of

MIB = 2**20

# Anonymous, mapped from a file, and locked memory, in a process and a grandchild of it.
ENGINE = """
import ctypes, mmap, subprocess, sys
size, path, depth = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
own = bytearray(b"x") * size
with open(path, "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
for page in range(0, len(weights), 4096):
    weights[page]
child = None
if depth:
    again = [sys.executable, "-c", sys.argv[4], sys.argv[1], path, str(depth - 1), sys.argv[4]]
    child = subprocess.Popen(again, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
print("loaded", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(MIB) * 48)
    child = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(32 * MIB), str(weights), "1", ENGINE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"loaded\n"
    yield child
    child.communicate(b"\n", timeout=10)


def test_ram_of_a_tree_of_processes(engine: subprocess.Popen[bytes]) -> None:
    pids = tree_of(engine.pid)
    assert len(pids) == 2
    alone, both = ram_of(pids[:1]), ram_of(pids)
    assert alone is not None
    assert both is not None
    # Own memory adds up, the file that both have mapped does not.
    assert 32 * MIB <= alone.shown_bytes < 60 * MIB
    assert 64 * MIB <= both.shown_bytes < 120 * MIB
    assert 48 * MIB <= alone.used_bytes - alone.shown_bytes < 80 * MIB
    assert 48 * MIB <= both.used_bytes - both.shown_bytes < 80 * MIB


def test_locked_weights_are_shown(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(os.urandom(MIB) * 4)
    before = ram_of([os.getpid()])
    with weights.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(4 * MIB)) != 0:
            pytest.skip("this user may not lock 4 MiB")
        try:
            after = ram_of([os.getpid()])
        finally:
            libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(4 * MIB))
    assert before is not None
    assert after is not None
    assert after.shown_bytes - before.shown_bytes >= 4 * MIB - MIB // 2


def test_a_process_that_is_gone_has_no_figures() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=10)
    assert tree_of(child.pid) == ()
    assert ram_of([child.pid]) is None
    assert engine_use([Claim(RAM, GIB)], None, {}, {}) == EngineUse(())


def process(pid: int, index: int = 0, memory: int | None = GIB, shared: int | None = None) -> GPUProcess:
    return GPUProcess(pid, index, f"GPU-{index}", f"0000:0{index + 1}:00.0", memory, shared)


def test_gpu_memory_of_the_engines_own_processes() -> None:
    listed = [process(1), process(2), process(2, index=1, shared=GIB), process(9, memory=7 * GIB)]
    assert gpus_of([1, 2], listed) == {"GPU-0": 2 * GIB, "GPU-1": 2 * GIB}
    assert gpus_of([3], listed) == {}


def test_one_process_that_the_driver_does_not_count_leaves_its_gpu_unknown() -> None:
    listed = [process(1), process(2, memory=None), process(2, index=1)]
    assert gpus_of([1, 2], listed) == {"GPU-1": GIB}


def test_the_drivers_word_comes_before_growth() -> None:
    claims = (Claim("GPU-0", 5 * GIB), Claim("GPU-1", 5 * GIB), Claim("GPU-2", GIB), Claim(RAM, GIB))
    use = engine_use(claims, RamUse(400, 300), {"GPU-0": 3 * GIB}, {"GPU-0": 9 * GIB, "GPU-1": 4 * GIB})
    assert use == EngineUse((Claim("GPU-0", 3 * GIB), Claim("GPU-1", 4 * GIB), Claim(RAM, 400)), 300)


def test_growth_counts_only_while_nobody_else_is_at_it() -> None:
    node = snapshot(card(0), card(1))
    growth = Growth()
    growth.start("a.0", [Claim("GPU-0", 1), Claim("GPU-1", 1), Claim(RAM, 1)], usage(node, used={0: GIB}))
    later = usage(node, used={0: 4 * GIB, 1: 2 * GIB})
    assert growth.read("a.0", later) == {"GPU-0": 3 * GIB, "GPU-1": 2 * GIB}
    growth.start("b.0", [Claim("GPU-1", 1)], usage(node, used={1: GIB}))
    assert growth.read("a.0", later) == {"GPU-0": 3 * GIB}
    assert growth.read("b.0", later) == {"GPU-1": GIB}
    growth.disturb({"GPU-0"})
    assert growth.read("a.0", later) == {}
    growth.forget("b.0")
    assert growth.read("b.0", later) == {}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    nvml, rocm = tmp_path_factory.mktemp("nvml"), tmp_path_factory.mktemp("rocm")
    build_nvml(nvml)
    build_amdsmi(rocm)
    return Lab(nvml, rocm)


def processes(
    env: dict[str, str],
) -> tuple[dict[str, dict[int, tuple[int | None, int | None]]], tuple[str, ...]]:
    """Memory and shared memory by GPU and process, and the notes."""
    detection = detect_in_child(30.0, env=env).detection
    answer = take_processes(detection, deadline_s=30.0, env=env)
    found: dict[str, dict[int, tuple[int | None, int | None]]] = {gpu_key(gpu): {} for gpu in detection.gpus}
    for one in answer.processes:
        key = one.uuid or one.pci_bus_id
        assert key is not None
        found[key][one.pid] = (one.memory_bytes, one.shared_memory_bytes)
    return found, answer.notes


@pytest.mark.native
def test_processes_on_nvidia_cards(lab: Lab) -> None:
    # 4712 computes and draws: it is on both lists, and counts once.
    cards = (
        "name=NVIDIA L4,memory_mb=23034,procs=4711:1024+4712:-+4713:10,graphics=4712:2048+4713:10;"
        "name=NVIDIA L4,memory_mb=23034;"
        "name=NVIDIA L4,memory_mb=23034,procs=4711:1,rc_processes=3"
    )
    found, notes = processes(lab.env(nvidia=cards))
    assert list(found.values()) == [
        {4711: (1024 * MIB, None), 4712: (2048 * MIB, None), 4713: (10 * MIB, None)},
        {},
        {},
    ]
    assert notes == ()


@pytest.mark.native
def test_processes_on_amd_gpus(lab: Lab) -> None:
    cards = (
        "gfx=1151,name=AMD Radeon 8060S,vram_mb=4096,gtt_mb=65536,procs=4711:3000:9000;"
        "gfx=1100,name=AMD Radeon RX 7900 XTX,vram_mb=24560,procs=4711:500:20+4712:1:0"
    )
    found, notes = processes(lab.env(amd=cards))
    assert list(found.values()) == [
        {4711: (3000 * MIB, 9000 * MIB)},
        {4711: (500 * MIB, None), 4712: (1 * MIB, None)},
    ]
    assert notes == ()


@pytest.mark.native
def test_a_library_that_hangs_is_said_so(lab: Lab) -> None:
    env = lab.env(nvidia="name=NVIDIA L4,memory_mb=23034,procs=4711:1024")
    detection = detect_in_child(30.0, env=env).detection
    answer = take_processes(detection, deadline_s=0.5, env=env | {"STANDIN_NVML_FAULT": "hang:init"})
    assert (answer.processes, answer.notes) == ((), ("pynvml: no answer in 0.5 s",))


def test_a_node_without_gpus_starts_no_child() -> None:
    answer = take_processes(snapshot().detection, env={"PATH": "/nowhere"})
    assert (answer.processes, answer.notes) == ((), ())
