"""Checks of the machine around the GPUs: memory, limits, disks, processor, clock. Pure."""

from collections.abc import Iterator

from xgen_ray.doctor.facts import Disk, NodeFacts
from xgen_ray.doctor.findings import Finding, Level
from xgen_ray.placement.sizes import GIB, MIB, gib

# Below the first it is a problem, below the second a warning: free bytes, by what is kept there.
_LEAST_FREE = {
    "cache": (GIB, 20 * GIB),
    "state": (16 * MIB, 256 * MIB),
    "shared memory": (128 * MIB, GIB),
    "temporary files": (256 * MIB, 2 * GIB),
}
_DISK_ADVICE = {
    "cache": "free some space or set another cache_dir: a model takes its whole size there",
    "state": "free some space or set another state_dir: the registry of models is kept there",
    "shared memory": "give it more: mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g",
    "temporary files": "free some space, or start Ray with another --temp-dir: its logs are kept there",
}
# Above this share of a disk Ray refuses to spill objects and reports the node as full.
_RAY_DISK_SHARE = 0.95
_RAY_DISKS = frozenset({"temporary files"})
_MANY_FILES = 65_536
_FEW_FILES = 8_192
_X86 = frozenset({"x86_64", "AMD64"})
# What prebuilt llama.cpp servers are compiled for: without it they end with an illegal instruction.
_ENGINE_FLAGS = ("avx2", "fma", "f16c")
# Whose "powersave" scales up under load by itself.
_SELF_GOVERNED = ("intel_pstate", "amd-pstate", "amd-pstate-epp")
_SKEW_WARNING_S = 2.0
_SKEW_PROBLEM_S = 60.0


def check_memory(facts: NodeFacts) -> Iterator[Finding]:
    """RAM, the container's limit on it, and swap."""
    limits, host = facts.limits, facts.snapshot.host
    available, total = gib(host.memory_available_bytes), gib(host.memory_total_bytes)
    yield Finding("memory", Level.OK, f"{available} of {total} RAM available")
    limit = limits.container_memory_bytes
    if limit is not None and limit < limits.machine_memory_bytes:
        found = f"the container may use {gib(limit)} of the machine's {gib(limits.machine_memory_bytes)}"
        yield Finding("memory", Level.NOTE, f"{found}: models are planned with that")
    if not limits.swap_total_bytes:
        yield Finding("swap", Level.OK, "no swap: a model is never swapped out")
        return
    used = f"{gib(limits.swap_used_bytes)} of {gib(limits.swap_total_bytes)} swap used"
    if limits.swap_used_bytes > limits.swap_total_bytes / 2:
        advice = "free some memory, or add RAM: weights that are swapped out make an engine crawl"
        yield Finding("swap", Level.WARNING, used, advice)
    else:
        yield Finding("swap", Level.OK, used)


def check_memory_lock(facts: NodeFacts) -> Iterator[Finding]:
    """Whether models in RAM can be kept from being swapped out."""
    limit, total = facts.snapshot.host.memlock_limit_bytes, facts.snapshot.host.memory_total_bytes
    if limit is None:
        yield Finding("memlock", Level.NOTE, "the limit on locked memory is not known")
    elif limit >= total:
        yield Finding("memlock", Level.OK, f"all of {gib(total)} RAM may be locked")
    else:
        found = f"{gib(limit)} of {gib(total)} RAM may be locked: larger models may be swapped out"
        advice = "raise it: LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1 for docker"
        has_swap = facts.limits.swap_total_bytes > 0
        yield Finding("memlock", Level.WARNING if has_swap else Level.NOTE, found, advice)


def check_open_files(facts: NodeFacts) -> Iterator[Finding]:
    """The limit on open files: each request takes some, and Ray many."""
    soft, hard = facts.limits.open_files, facts.limits.open_files_hard
    if soft is None or hard is None:
        yield Finding("files", Level.NOTE, "the limit on open files is not known")
        return
    found = f"{soft} files may be open, {hard} on request"
    advice = f"raise it: LimitNOFILE={_MANY_FILES} in the systemd unit, or ulimit -n {_MANY_FILES}"
    if soft < _FEW_FILES:
        yield Finding("files", Level.WARNING, found, advice)
    elif soft < _MANY_FILES:
        yield Finding("files", Level.NOTE, f"{found}; Ray advises {_MANY_FILES}", advice)
    else:
        yield Finding("files", Level.OK, found)


def check_disks(facts: NodeFacts) -> Iterator[Finding]:
    """Room where files are kept."""
    for disk in facts.disks:
        yield _disk(disk)


def _disk(disk: Disk) -> Finding:
    where = f"{disk.role} ({disk.path})"
    advice = _DISK_ADVICE[disk.role]
    if disk.problem is not None or disk.free_bytes is None or disk.total_bytes is None:
        found = f"{where}: {disk.problem or 'its size is not known'}"
        return Finding("disk", Level.PROBLEM, found, f"let this user write there, or {advice}")
    found = f"{where}: {gib(disk.free_bytes)} of {gib(disk.total_bytes)} free"
    problem_below, warning_below = _LEAST_FREE[disk.role]
    if disk.free_bytes < problem_below:
        return Finding("disk", Level.PROBLEM, found, advice)
    if disk.role in _RAY_DISKS and disk.free_bytes < disk.total_bytes * (1 - _RAY_DISK_SHARE):
        why = f"{found}; above {_RAY_DISK_SHARE:.0%} used, Ray takes the disk for full"
        return Finding("disk", Level.WARNING, why, advice)
    return (
        Finding("disk", Level.WARNING, found, advice)
        if disk.free_bytes < warning_below
        else Finding("disk", Level.OK, found)
    )


def check_processor(facts: NodeFacts) -> Iterator[Finding]:
    """What CPU engines need of the processor, and how its clock is governed."""
    host, processor = facts.snapshot.host, facts.processor
    model = f"{host.cpu_count} x {host.cpu_model or host.machine}"
    missing = [flag for flag in _ENGINE_FLAGS if flag not in host.cpu_flags]
    if host.machine in _X86 and not host.cpu_flags:
        yield Finding("cpu", Level.NOTE, f"{model}; its instructions are not known")
    elif host.machine in _X86 and missing:
        advice = "build llama-server on this machine, or install one for older processors"
        found = f"{model} lacks {', '.join(missing)}: prebuilt engines end with an illegal instruction"
        yield Finding("cpu", Level.WARNING, found, advice)
    else:
        wide = ", with AVX-512" if "avx512f" in host.cpu_flags else ""
        yield Finding("cpu", Level.OK, f"{model}{wide}")
    if processor.governor == "powersave" and processor.driver not in _SELF_GOVERNED:
        found = f"the CPU clock is governed by powersave ({processor.driver or 'driver unknown'})"
        advice = "set it to performance or schedutil: cpupower frequency-set -g performance"
        yield Finding("cpu", Level.WARNING, found, advice)


def check_clock(facts: NodeFacts) -> Iterator[Finding]:
    """Whether this node's time is the cluster's."""
    clock = facts.clock
    advice = "run a time service on both (systemd-timesyncd or chrony)"
    if clock.skew_s is not None:
        direction = "ahead of" if clock.skew_s > 0 else "behind"
        found = f"{abs(clock.skew_s):.1f} s {direction} {clock.peer} (give or take {clock.error_s:.1f} s)"
        off = max(abs(clock.skew_s) - clock.error_s, 0.0)
        if off > _SKEW_PROBLEM_S:
            yield Finding("clock", Level.PROBLEM, found, advice)
        elif off > _SKEW_WARNING_S:
            yield Finding("clock", Level.WARNING, found, advice)
        else:
            yield Finding("clock", Level.OK, found)
    elif clock.problem is not None:
        found = f"{clock.peer} gives no time to compare: {clock.problem}"
        yield Finding("clock", Level.NOTE, found)
    if clock.synchronised is False:
        level = Level.NOTE if clock.skew_s is not None else Level.WARNING
        yield Finding("clock", level, "the kernel's clock is not synchronised", advice)
    elif clock.synchronised:
        yield Finding("clock", Level.OK, "the kernel's clock is synchronised")
    elif clock.skew_s is None:
        yield Finding("clock", Level.NOTE, "whether the clock is synchronised cannot be read here")
