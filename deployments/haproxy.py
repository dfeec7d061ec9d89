"""The program that Ray starts as HAProxy: closes its side doors, shortens the way to the router, ties it to
its owner, becomes HAProxy.

    python -I -S haproxy.py PORT,PORT BINARY ARGUMENTS...

Ray's template binds the statistics and metrics ports to all interfaces, and no setting changes that; and
when Ray is killed, HAProxy would go on listening. The PORTs are those two; the public one is bound as the
operator said, to all interfaces if so. Standard library only; it imports nothing of ours.
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
# Ray names a backend after its application.
_ROUTER_BACKEND = re.compile(r"^backend http-xgen-router$", re.MULTILINE)
# The router watches its clients itself. Told so, Ray starts no tasks beside each request to do it once more.
_UNWATCHED = "http-request set-header x-request-disconnect-disabled ?1"


def close_ports(config: str, ports: frozenset[str]) -> str:
    """The configuration with those of ``ports`` that were bound to all interfaces bound to loopback."""

    def closed(found: re.Match[str]) -> str:
        return f"{found[1]} 127.0.0.1:{found[2]}" if found[2] in ports else found[0]

    return _OPEN_BIND.sub(closed, config)


def leave_clients_to_the_router(config: str) -> str:
    """The configuration with the router's requests marked as watched already."""
    return _ROUTER_BACKEND.sub(rf"\g<0>\n    {_UNWATCHED}", config)


def main(argv: list[str]) -> None:
    """Does not return."""
    owner = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != owner:
        sys.exit("the owner is gone")
    ports, *argv = argv
    for flag, value in itertools.pairwise(argv):
        if flag == "-f":
            path = Path(value)
            config = close_ports(path.read_text(), frozenset(ports.split(",")))
            path.write_text(leave_clients_to_the_router(config))
    os.execv(argv[0], argv)  # noqa: S606  # an argument list, no shell


if __name__ == "__main__":
    main(sys.argv[1:])
