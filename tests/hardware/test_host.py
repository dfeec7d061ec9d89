"""Host facts on this machine, and control groups read from trees of files as kernels lay them out."""

import os
import resource
from pathlib import Path

import psutil
import pytest

from xgen_ray.hardware import read_host
from xgen_ray.hardware.host import CgroupLimits, read_cgroup_limits

MIB = 2**20


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_this_machine() -> None:
    host = read_host()
    assert 1 <= host.cpu_count <= len(os.sched_getaffinity(0))
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes <= psutil.virtual_memory().total
    assert host.os == os.uname().sysname
    assert host.machine == os.uname().machine
    assert host.memlock_limit_bytes is not None
    assert 0 <= host.memlock_limit_bytes <= host.memory_total_bytes


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, CgroupLimits(), id="no control groups"),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
                "sys/fs/cgroup/memory.current": f"{300 * MIB}\n",
                "sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
            },
            CgroupLimits(1.5, 512 * MIB, 312 * MIB),
            id="v2 in a container: its own group is the root, and cache counts as free",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/a/memory.max": f"{1024 * MIB}\n",
                "sys/fs/cgroup/a/memory.current": f"{1000 * MIB}\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/memory.max": f"{512 * MIB}\n",
                "sys/fs/cgroup/a/b/memory.current": f"{10 * MIB}\n",
            },
            CgroupLimits(1.0, 512 * MIB, 24 * MIB),
            id="v2: a parent's limit binds too, and a full parent leaves little",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.current": "5\n",
            },
            CgroupLimits(),
            id="v2 without limits",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{256 * MIB}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{100 * MIB}\n",
                "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {60 * MIB}\n",
            },
            CgroupLimits(2.0, 256 * MIB, 216 * MIB),
            id="v1 in a container, where the group's own path is not mounted",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "4096\n",
            },
            CgroupLimits(),
            id="v1 without limits",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "garbage\n",
                "sys/fs/cgroup/memory.max": "garbage\n",
            },
            CgroupLimits(),
            id="unreadable files limit nothing",
        ),
    ],
)
def test_cgroup_limits(tmp_path: Path, files: dict[str, str], expected: CgroupLimits) -> None:
    assert read_cgroup_limits(lay_out(tmp_path, files)) == expected


def test_a_container_counts_its_own_cpus_and_memory(tmp_path: Path) -> None:
    root = lay_out(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Test CPU 9000\nflags\t\t: avx2 fma\n\n",
            "proc/self/status": "Name:\tx\nCapEff:\t0000000000000000\n",
            "sys/fs/cgroup/cpu.max": "90000 100000\n",
            "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{60 * MIB}\n",
        },
    )
    host = read_host(root)
    assert (host.cpu_count, host.memory_total_bytes, host.memory_available_bytes) == (1, 64 * MIB, 4 * MIB)
    assert host.cpu_model == "Test CPU 9000"
    assert host.cpu_flags == {"avx2", "fma"}
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    expected = 64 * MIB if soft == resource.RLIM_INFINITY else min(soft, 64 * MIB)
    assert host.memlock_limit_bytes == expected


def test_the_right_to_lock_memory_lifts_the_limit(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"proc/self/status": "CapEff:\t0000000000004000\n"})
    host = read_host(root)
    assert host.memlock_limit_bytes == host.memory_total_bytes


def test_arm_calls_its_flags_features(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd sve\n"})
    assert read_host(root).cpu_flags == {"fp", "asimd", "sve"}
