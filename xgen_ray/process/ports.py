"""Network ports for children."""

import functools
import itertools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

# Above the ports of Ray's workers (10002..19999 by default), below the node ports of Kubernetes
# (30000..32767) and those that systems give to connections: from 32768 on Linux, from 49152 elsewhere.
# https://docs.ray.io/en/latest/ray-core/configure.html#ports-configurations
_PORTS = range(20000, 30000)
_GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 200


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody on ``host`` listens on now, and that the system gives to no connection.

    A port of the system's own choice may be the source of somebody's next connection a moment later, which
    keeps a child from listening on it as well as a listener does. What a process is given differs from call
    to call. Another process may still take it before the child does; the child then dies of PORT_IN_USE, and
    whoever started it tries again with another one.
    """
    for port in itertools.islice(_candidates(), _ATTEMPTS):
        if _can_be_bound(host, port):
            return port
    return _of_the_system(host)


@functools.cache
def _candidates() -> Iterator[int]:
    """Round and round from a random start, so that two processes seldom try the same; none on a system that
    gives these ports to connections.
    """
    given = _given_to_connections()
    ports = [port for port in _PORTS if port not in given]
    start = random.randrange(len(ports)) if ports else 0  # noqa: S311  # no secret
    return itertools.cycle(ports[start:] + ports[:start])


def _given_to_connections() -> range:
    try:
        first, last = (int(word) for word in _GIVEN_TO_CONNECTIONS.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # not Linux
        return range(32768, 65536)
    return range(first, last + 1)


def _can_be_bound(host: str, port: int) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _of_the_system(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
