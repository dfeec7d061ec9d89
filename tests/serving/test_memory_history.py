"""The last hour of every memory, as nodes tell it."""

from tests.api.support import GPU, NODE
from xgen_ray.schema import NodeReport, NodesReport
from xgen_ray.serving.memory_history import KEPT_S, STEP_S, MemoryHistory

GIB = 2**30


def seen(used: int | None, **changes: object) -> NodesReport:
    gpu = GPU.model_copy(update={"memory_used_bytes": used})
    node: NodeReport = NODE.model_copy(update={"gpus": (gpu,), **changes})
    return NodesReport(nodes=(node,))


def test_gpus_and_ram_have_a_line_each() -> None:
    history = MemoryHistory()
    history.note(seen(GIB), 100.0)
    history.note(seen(2 * GIB), 100.0 + STEP_S)
    gpu, ram = history.report().lines
    assert (gpu.node, gpu.gpu, gpu.label, gpu.total_bytes) == ("node-1", 0, GPU.label, 24 * GIB)
    assert gpu.points == ((100.0, GIB), (100.0 + STEP_S, 2 * GIB))
    assert (ram.gpu, ram.total_bytes, ram.points[0]) == (None, 2**35, (100.0, 2**34))


def test_looks_in_quick_succession_are_one() -> None:
    history = MemoryHistory()
    history.note(seen(GIB), 100.0)
    history.note(seen(2 * GIB), 101.0)
    assert history.report().lines[0].points == ((100.0, GIB),)


def test_what_is_not_known_is_a_gap_and_a_silent_node_has_none() -> None:
    history = MemoryHistory()
    history.note(seen(None, memory_total_bytes=0), 100.0)
    assert history.report().lines == ()


def test_an_hour_is_kept() -> None:
    history = MemoryHistory()
    for number in range(500):
        history.note(seen(GIB), number * STEP_S)
    points = history.report().lines[0].points
    assert points[-1][0] - points[0][0] < KEPT_S
    assert len(points) == KEPT_S / STEP_S
    history.note(NodesReport(nodes=()), 499 * STEP_S + KEPT_S + 1)
    assert history.report().lines == ()
