"""Whole nodes: both vendors, neither, and libraries that misbehave. Every vendor in its own child."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.hardware.lab import Lab, ask, install_torch, torch_env
from xgen_ray.hardware import (
    DetectorReport,
    GPUType,
    NodeSnapshot,
    detect_in_child,
    snapshot_from_json,
    take_snapshot,
    take_usage,
)
from xgen_ray.hardware.isolate import ask_children

pytestmark = pytest.mark.native

GIB = 2**30
RTX_4090 = (
    "name=NVIDIA GeForce RTX 4090,memory_mb=24564,used_mb=1000,reserved_mb=500,cc=8.9,bus=00000000:01:00.0"
)
RAPHAEL = "name=AMD Radeon Graphics,gfx=1036,vram_mb=512,gtt_mb=65536,gtt_used_mb=128,bdf=0000:0d:00.0"
RX_7900 = "name=AMD Radeon RX 7900 XTX,gfx=1100,vram_mb=24576,vram_used_mb=1024,bdf=0000:03:00.0"


def reasons(snapshot: NodeSnapshot) -> dict[str, str | None]:
    return {report.detector: report.reason for report in snapshot.detection.reports}


def test_an_nvidia_card_beside_an_amd_igpu(lab: Lab) -> None:
    snapshot = detect_in_child(env=lab.env(nvidia=RTX_4090, amd=RAPHAEL), deadline_s=30)
    detection = snapshot.detection
    assert [gpu.gpu_type for gpu in detection.gpus] == [GPUType.AMD_RDNA, GPUType.NVIDIA]
    assert detection.primary_gpu is not None
    assert detection.primary_gpu.device_name == "NVIDIA GeForce RTX 4090"
    assert detection.detection_method == "pynvml"
    assert reasons(snapshot) == {
        "amdsmi": None,
        "pynvml": None,
        "torch-rocm": "not asked: amdsmi found 1 GPU",
        "torch-cuda": "not asked: pynvml found 1 GPU",
        "apple": f"the system is {snapshot.host.os}, not macOS",
        "cpu": reasons(snapshot)["cpu"],
    }
    assert snapshot.host.cpu_count >= 1
    assert abs(snapshot.taken_at - time.time()) < 300


def test_nothing_at_all_explains_itself(lab: Lab, tmp_path: Path) -> None:
    """Libraries that are there but cannot be loaded, which the real packages report as not found."""
    (tmp_path / "lib").mkdir()
    for name in ("libnvidia-ml.so.1", "lib/libamd_smi.so", "libamd_smi.so"):
        (tmp_path / name).write_text("no library")
    env = lab.env() | {"LD_LIBRARY_PATH": str(tmp_path), "ROCM_PATH": str(tmp_path)}
    snapshot = detect_in_child(env=env, deadline_s=30)
    detection = snapshot.detection
    assert (detection.available, detection.gpus, detection.primary_gpu) == (False, (), None)
    assert detection.detection_method == "cpu_fallback"
    why = reasons(snapshot)
    assert why["amdsmi"] is not None
    assert why["amdsmi"].startswith("library libamd_smi.so not found")
    assert why["pynvml"] == "library libnvidia-ml.so.1 not found; install the NVIDIA driver"
    assert all(why.values())


def test_a_missing_package_says_what_to_install(lab: Lab, tmp_path: Path) -> None:
    """A Python that sees this project but neither vendor's package: their names are blocked on its path."""
    blocker = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"
    (tmp_path / "pynvml.py").write_text(blocker)
    (tmp_path / "amdsmi.py").write_text(blocker)
    env = lab.env(PYTHONPATH=str(tmp_path))
    assert ask("pynvml", env).reason == "not installed; pip install 'xgen-ray[nvidia]'"
    assert ask("amdsmi", env).reason == "not installed; pip install 'xgen-ray[amd]'"


@pytest.mark.parametrize("where", ["init", "memory"])
def test_a_library_that_crashes_loses_its_own_vendor_only(lab: Lab, where: str) -> None:
    snapshot = detect_in_child(
        env=lab.env(nvidia=RTX_4090, amd=RX_7900, STANDIN_NVML_FAULT=f"crash:{where}"), deadline_s=30
    )
    assert [gpu.device_name for gpu in snapshot.detection.gpus] == ["AMD Radeon RX 7900 XTX"]
    assert reasons(snapshot)["pynvml"] == "crashed with SIGSEGV"
    assert reasons(snapshot)["amdsmi"] is None


def test_a_library_that_hangs_loses_its_own_vendor_only(lab: Lab) -> None:
    started = time.monotonic()
    snapshot = detect_in_child(
        env=lab.env(nvidia=RTX_4090, amd=RX_7900, STANDIN_AMDSMI_FAULT="hang:memory"), deadline_s=6
    )
    assert time.monotonic() - started < 20
    assert [gpu.device_name for gpu in snapshot.detection.gpus] == ["NVIDIA GeForce RTX 4090"]
    assert reasons(snapshot)["amdsmi"] == "no answer in 6 s"


@pytest.mark.parametrize(("detector", "fault"), [("pynvml", "NVML"), ("amdsmi", "AMDSMI")])
def test_a_library_that_prints_does_not_spoil_the_answer(lab: Lab, detector: str, fault: str) -> None:
    env = lab.env(nvidia=RTX_4090, amd=RX_7900, **{f"STANDIN_{fault}_FAULT": "print:init"})
    assert len(ask(detector, env).gpus) == 1


def test_a_hanging_child_ends_by_itself_when_nobody_kills_it(lab: Lab) -> None:
    """The child's own alarm: the last resort when its parent is stopped or too busy."""
    command = [sys.executable, "-P", "-m", "xgen_ray.hardware", "report", "pynvml", "--within", "0.1"]
    env = lab.env(nvidia=RTX_4090, STANDIN_NVML_FAULT="hang:init")
    assert subprocess.run(command, env=env, capture_output=True, timeout=30).returncode == -signal.SIGALRM


@pytest.mark.skipif(sys.platform != "linux", reason="a child is tied to its parent's life by prctl")
def test_a_hanging_child_does_not_outlive_its_parent(lab: Lab) -> None:
    program = (
        "from xgen_ray.hardware.isolate import ask_children\n"
        "ask_children('report', ['pynvml'], deadline_s=100)\n"
    )
    env = lab.env(nvidia=RTX_4090, STANDIN_NVML_FAULT="hang:init")
    parent = psutil.Popen([sys.executable, "-c", program], env=env)
    try:
        child = wait_for_sleeping_child(parent)
    finally:
        parent.kill()
        parent.wait(10)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def wait_for_sleeping_child(parent: psutil.Popen) -> psutil.Process:
    """The parent's child once it hangs: it has loaded the stand-in and waits in ``pause``."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in parent.children():
            loaded = any("libnvidia-ml" in region.path for region in child.memory_maps())
            if loaded and child.status() == psutil.STATUS_SLEEPING:
                return child
        time.sleep(0.05)
    pytest.fail("the child never hung")


def test_the_command_prints_a_snapshot_and_nothing_else(lab: Lab) -> None:
    command = [sys.executable, "-m", "xgen_ray.hardware"]
    env = lab.env(nvidia=RTX_4090, STANDIN_NVML_FAULT="print:init")
    done = subprocess.run(command, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0
    snapshot = snapshot_from_json(done.stdout)
    assert [gpu.device_name for gpu in snapshot.detection.gpus] == ["NVIDIA GeForce RTX 4090"]


def test_a_stand_in_is_asked_only_where_the_vendors_library_is_silent(lab: Lab, tmp_path: Path) -> None:
    folder = install_torch(tmp_path, cuda="13.0", hip=None)
    card = {"name": "NVIDIA L4", "total_memory": 23 * GIB, "major": 8, "minor": 9}
    snapshot = detect_in_child(env=lab.env(amd=RX_7900, **torch_env(folder, [card])), deadline_s=30)
    assert [gpu.device_name for gpu in snapshot.detection.gpus] == ["AMD Radeon RX 7900 XTX", "NVIDIA L4"]
    assert reasons(snapshot)["torch-rocm"] == "not asked: amdsmi found 1 GPU"
    assert reasons(snapshot)["torch-cuda"] is None


def test_usage_of_both_vendors(lab: Lab) -> None:
    env = lab.env(nvidia=RTX_4090, amd=f"{RAPHAEL};{RX_7900},rc_edge=2")
    usage = take_usage(env=env, deadline_s=30)
    assert usage.notes == ()
    igpu, radeon, geforce = usage.gpus
    assert (igpu.pci_bus_id, igpu.shared_memory_used_bytes) == ("0000:0d:00.0", 128 * 2**20)
    assert (radeon.memory_used_bytes, radeon.memory_free_bytes) == (GIB, 23 * GIB)
    assert radeon.shared_memory_used_bytes is None
    assert (radeon.utilization_percent, radeon.power_watts) == (37.0, 44.0)
    assert (igpu.temperature_celsius, radeon.temperature_celsius) == (54.0, 61.0)
    # The second version of NVML's query keeps the driver's reserve out of what is used.
    assert (geforce.memory_used_bytes, geforce.memory_free_bytes) == (1000 * 2**20, (24564 - 1500) * 2**20)
    assert (geforce.utilization_percent, geforce.temperature_celsius, geforce.power_watts) == (
        42.0,
        51.0,
        123.456,
    )
    assert usage.memory_available_bytes > 0
    assert usage.cpu_percent is not None


def test_usage_asks_only_for_what_the_node_has(lab: Lab) -> None:
    env = lab.env(nvidia=RTX_4090, STANDIN_AMDSMI_FAULT="crash:init")
    reports = [ask("pynvml", env)]
    detection = take_snapshot(lambda names: [r for r in reports if r.detector in names]).detection
    usage = take_usage(detection, env=env, deadline_s=30)
    assert [figures.uuid for figures in usage.gpus] == [gpu.uuid for gpu in detection.gpus]
    assert usage.notes == ()


def test_usage_loses_fields_and_vendors_apart(lab: Lab) -> None:
    env = lab.env(nvidia=f"{RTX_4090},rc_usage=3", amd=RX_7900, STANDIN_AMDSMI_FAULT="crash:memory")
    usage = take_usage(env=env, deadline_s=30)
    assert usage.notes == ("amdsmi: crashed with SIGSEGV",)
    (geforce,) = usage.gpus
    assert geforce.memory_used_bytes == 1000 * 2**20
    assert (geforce.utilization_percent, geforce.temperature_celsius, geforce.power_watts) == (
        None,
        None,
        None,
    )


def test_usage_of_a_node_without_gpus_starts_no_child() -> None:
    detection = take_snapshot(lambda _: [DetectorReport("amdsmi"), DetectorReport("pynvml")]).detection
    usage = take_usage(detection, env={"PATH": "/nowhere"})
    assert (usage.gpus, usage.notes) == ((), ())


def test_a_child_that_cannot_run_is_an_answer_too(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("raise RuntimeError('broken installation')\n")
    answers = ask_children("report", ["pynvml"], deadline_s=30, env={"PYTHONPATH": str(tmp_path)})
    assert answers["pynvml"].reason == "failed with exit code 1: RuntimeError: broken installation"
