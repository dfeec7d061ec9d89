"""All checks, in the order in which they are shown."""

from collections.abc import Callable, Iterable, Iterator

from xgen_ray.doctor.facts import NodeFacts
from xgen_ray.doctor.findings import Finding, Level
from xgen_ray.doctor.gpu_checks import check_device_files, check_drivers, check_engines_of_gpus
from xgen_ray.doctor.host_checks import (
    check_clock,
    check_disks,
    check_memory,
    check_memory_lock,
    check_open_files,
    check_processor,
)
from xgen_ray.doctor.software_checks import (
    check_engines,
    check_haproxy,
    check_hub,
    check_unable,
    check_versions,
)

Check = Callable[[NodeFacts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    check_drivers,
    check_device_files,
    check_engines_of_gpus,
    check_engines,
    check_unable,
    check_versions,
    check_haproxy,
    check_processor,
    check_memory,
    check_memory_lock,
    check_open_files,
    check_disks,
    check_clock,
    check_hub,
)


def examine(facts: NodeFacts) -> tuple[Finding, ...]:
    """What every check has to say of ``facts``."""
    return tuple(finding for check in CHECKS for finding in check(facts))


def worst(findings: Iterable[Finding]) -> Level:
    """The highest level among ``findings``."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
