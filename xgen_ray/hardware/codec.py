"""Snapshots, reports and usage as JSON, for files and between processes.

Children that ask vendors' libraries only write, with the standard library; pydantic, whose import costs
more than all else such a child does, is loaded where JSON is read or a whole snapshot written.
"""

import functools
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xgen_ray.errors import InvalidRequest
from xgen_ray.hardware.types import DetectorReport, GPUProcess, GPUUsage, NodeSnapshot

if TYPE_CHECKING:
    from pydantic import TypeAdapter

# What one detector says of live usage: the figures, and why some or all are missing.
Usage = tuple[tuple[GPUUsage, ...], str | None]
# What one detector says of the processes on its GPUs, and why some or all are missing.
Processes = tuple[tuple[GPUProcess, ...], str | None]


def snapshot_to_json(snapshot: NodeSnapshot, *, indent: int | None = None) -> str:
    return _adapter(NodeSnapshot).dump_json(snapshot, indent=indent).decode()


def snapshot_from_json(text: str | bytes) -> NodeSnapshot:
    """Inverse of :func:`snapshot_to_json`. Raises InvalidRequest for anything else."""
    from pydantic import ValidationError

    try:
        snapshot: NodeSnapshot = _adapter(NodeSnapshot).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole text"
        raise InvalidRequest(f"not a node snapshot: {where}: {first['msg']}", "snapshot") from error
    return snapshot


def report_to_json(report: DetectorReport) -> bytes:
    return json.dumps(asdict(report)).encode()


def report_from_json(text: bytes) -> DetectorReport:
    """Raises ValueError for anything that is not a report."""
    report: DetectorReport = _adapter(DetectorReport).validate_json(text)
    return report


def usage_to_json(usage: Usage) -> bytes:
    figures, reason = usage
    return json.dumps(([asdict(one) for one in figures], reason)).encode()


def usage_from_json(text: bytes) -> Usage:
    """Raises ValueError for anything that is not usage."""
    usage: Usage = _adapter(Usage).validate_json(text)
    return usage


def processes_to_json(processes: Processes) -> bytes:
    found, reason = processes
    return json.dumps(([asdict(one) for one in found], reason)).encode()


def processes_from_json(text: bytes) -> Processes:
    """Raises ValueError for anything that is not a list of processes."""
    processes: Processes = _adapter(Processes).validate_json(text)
    return processes


@functools.cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
