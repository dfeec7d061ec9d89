"""``python -m xgen_ray.hardware``: this node's hardware as JSON on stdout.

Without arguments, the whole snapshot. ``report``, ``usage`` or ``processes`` and a DETECTOR answer for that
one and are how the rest of the package runs vendors' native code in a process of its own.
"""

import argparse
import ctypes
import os
import signal
import sys

from xgen_ray.hardware.codec import processes_to_json, report_to_json, snapshot_to_json, usage_to_json
from xgen_ray.hardware.detectors import DETECTORS
from xgen_ray.hardware.snapshot import detect_in_child

_PR_SET_PDEATHSIG = 1
# The parent kills at the deadline; the child's own timer is for when the parent cannot.
_GRACE_S = 3.0


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.question == "snapshot":
        sys.stdout.write(snapshot_to_json(detect_in_child(deadline_s=arguments.within), indent=2) + "\n")
        return 0
    detector = DETECTORS[arguments.detector]
    _die_in_time(arguments.within)
    _see_every_device()
    answer = _take_stdout()
    if arguments.question == "report":
        body = report_to_json(detector.detect())
    elif arguments.question == "processes":
        read = detector.read_processes
        body = processes_to_json(read() if read is not None else ((), "lists no processes"))
    elif detector.read_usage is not None:
        body = usage_to_json(detector.read_usage())
    else:
        body = usage_to_json(((), "gives no live figures"))
    with os.fdopen(answer, "wb") as pipe:
        pipe.write(body)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m xgen_ray.hardware", description=__doc__)
    parser.add_argument(
        "question", nargs="?", choices=("snapshot", "report", "usage", "processes"), default="snapshot"
    )
    parser.add_argument("detector", nargs="?", choices=sorted(DETECTORS), default=next(iter(DETECTORS)))
    parser.add_argument("--within", type=float, default=10.0, metavar="SECONDS")
    return parser


def _die_in_time(within_s: float) -> None:
    """End with the parent, and soon after the deadline whatever the native code is doing: the kernel
    carries out both signals, so a library that never returns cannot hold them off.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, within_s + _GRACE_S)


def _see_every_device() -> None:
    """Facts are the machine's, not those of a process that sees a part of it; indices follow PCI order."""
    for mask in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        os.environ.pop(mask, None)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


def _take_stdout() -> int:
    """A descriptor for the answer alone; whatever libraries print to stdout goes to stderr from now on."""
    sys.stdout.flush()
    answer = os.dup(1)
    os.dup2(2, 1)
    return answer


if __name__ == "__main__":
    sys.exit(main())
