"""Taking a node's snapshot: ask every detector, merge, add the machine around the GPUs."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence

from xgen_ray.hardware.apple import Platform, detect_apple
from xgen_ray.hardware.codec import report_from_json
from xgen_ray.hardware.detectors import DETECTORS
from xgen_ray.hardware.host import read_host
from xgen_ray.hardware.isolate import Answer, ask_children
from xgen_ray.hardware.merge import merge
from xgen_ray.hardware.types import DetectorReport, HostFacts, NodeSnapshot

# Puts the question to the named detectors and returns a report for each.
Ask = Callable[[Sequence[str]], Sequence[DetectorReport]]


def detect_in_child(deadline_s: float = 10.0, env: Mapping[str, str] | None = None) -> NodeSnapshot:
    """This node's snapshot, with every vendor's native code in a child process of its own.

    Blocks; a vendor that hangs costs ``deadline_s`` and its own answer, and one asked in its place may
    cost as much again. ``env`` is the children's whole environment; None passes on this process's own.
    """

    def ask(detectors: Sequence[str]) -> list[DetectorReport]:
        answers = ask_children("report", detectors, deadline_s=deadline_s, env=env)
        return [_report(name, answer) for name, answer in answers.items()]

    search_path = None if env is None else env.get("PATH", "")
    return take_snapshot(ask, here=Platform(platform.system(), platform.machine(), search_path))


def ask_here(detectors: Sequence[str]) -> list[DetectorReport]:
    """Ask in this process. For short-lived programs only: native code that hangs or crashes takes the
    process along.
    """
    return [DETECTORS[name].detect() for name in detectors]


def take_snapshot(ask: Ask = ask_here, *, here: Platform | None = None) -> NodeSnapshot:
    """This node's snapshot, its detectors asked by ``ask``. A detector that stands in for another is only
    asked when that one found nothing: importing torch takes seconds.
    """
    host = read_host()
    reports = list(ask([name for name, detector in DETECTORS.items() if detector.stands_in_for is None]))
    found = {report.detector: len(report.gpus) for report in reports}
    stand_ins: list[str] = []
    for name, detector in DETECTORS.items():
        if detector.stands_in_for is None:
            continue
        if count := found.get(detector.stands_in_for):
            gpus = "1 GPU" if count == 1 else f"{count} GPUs"
            reports.append(DetectorReport(name, reason=f"not asked: {detector.stands_in_for} found {gpus}"))
        else:
            stand_ins.append(name)
    reports.extend(ask(stand_ins))
    reports.append(detect_apple(here or Platform(platform.system(), platform.machine())))
    reports.append(detect_cpu(host))
    return NodeSnapshot(host=host, detection=merge(reports), taken_at=time.time())


def detect_cpu(host: HostFacts) -> DetectorReport:
    """The fallback that every node has. It finds no GPU, and its reason says what there is instead."""
    model = host.cpu_model or host.machine
    gibibytes = host.memory_total_bytes / 2**30
    return DetectorReport("cpu", reason=f"always there: {host.cpu_count} x {model}, {gibibytes:.1f} GiB RAM")


def _report(name: str, answer: Answer) -> DetectorReport:
    if answer.reason is not None:
        return DetectorReport(name, reason=answer.reason)
    try:
        return report_from_json(answer.output)
    except ValueError:
        return DetectorReport(name, reason=f"answer not understood: {answer.output[:80]!r}")
