"""How full the memory of every GPU and node was in the last hour. Pure: time comes in with each call."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from xgen_ray.console import MemoryLine, MemoryReport
from xgen_ray.schema import NodeReport, NodesReport

KEPT_S: Final = 3600.0
# Looks that follow each other more closely add nothing to a picture of an hour.
STEP_S: Final = 10.0
_GIB: Final = 2**30

# A node's id, and which of its memories: a GPU's place, or None for RAM.
Key = tuple[str, int | None]


@dataclass(slots=True)
class _Line:
    node: str
    label: str
    total_bytes: int
    points: deque[tuple[float, int]] = field(default_factory=deque)


class MemoryHistory:
    """The last hour of each memory that was seen in it."""

    def __init__(self) -> None:
        self._lines: dict[Key, _Line] = {}
        self._noted = float("-inf")

    def note(self, nodes: NodesReport, at: float) -> None:
        """What nodes say now; a node that says nothing leaves a gap."""
        if at - self._noted < STEP_S:
            return
        self._noted = at
        for node in nodes.nodes:
            for place, label, total, used in _memories(node):
                key = (node.node_id or node.node, place)
                line = self._lines.setdefault(key, _Line(node.node, label, total))
                line.total_bytes = total
                line.points.append((at, used))
        for key, line in list(self._lines.items()):
            while line.points and line.points[0][0] <= at - KEPT_S:
                line.points.popleft()
            if not line.points:
                del self._lines[key]

    def report(self) -> MemoryReport:
        lines = sorted(
            self._lines.items(), key=lambda item: (item[1].node, item[0][1] is None, item[0][1] or 0)
        )
        return MemoryReport(
            lines=tuple(
                MemoryLine(
                    node=line.node,
                    gpu=place,
                    label=line.label,
                    total_bytes=line.total_bytes,
                    points=tuple(line.points),
                )
                for (_, place), line in lines
            )
        )


def _memories(node: NodeReport) -> Iterator[tuple[int | None, str, int, int]]:
    """Each memory of a node that is known: which, its name, its size, how much of it is in use."""
    for gpu in node.gpus:
        if gpu.memory_gb is not None and gpu.memory_used_bytes is not None:
            yield gpu.id, gpu.label, int(gpu.memory_gb * _GIB), gpu.memory_used_bytes
    if node.memory_total_bytes:
        yield None, "RAM", node.memory_total_bytes, node.memory_total_bytes - node.memory_available_bytes
