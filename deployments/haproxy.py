"""The program that Ray starts as HAProxy: closes its side doors, ties it to its owner, becomes HAProxy.

    python -I -S haproxy.py BINARY ARGUMENTS...

Ray's template binds the statistics and metrics ports to all interfaces, and no setting changes that; and
when Ray is killed, HAProxy would go on listening. Standard library only; it imports nothing of ours.
"""

import ctypes
import itertools
import os
import re
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_OPEN_BIND = re.compile(r"^(\s*bind) \*?:(\d+)", re.MULTILINE)


def close_ports(config: str) -> str:
    """The configuration with every port that was bound to all interfaces bound to loopback."""
    return _OPEN_BIND.sub(r"\1 127.0.0.1:\2", config)


def main(argv: list[str]) -> None:
    """Does not return."""
    owner = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        sys.exit("the owner is gone")
    for flag, value in itertools.pairwise(argv):
        if flag == "-f":
            path = Path(value)
            path.write_text(close_ports(path.read_text()))
    os.execv(argv[0], argv)  # noqa: S606  # an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
