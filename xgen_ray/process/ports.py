"""Network ports for children."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody on ``host`` listens on now.

    Another process may take it before the child does; the child then dies of PORT_IN_USE, and whoever
    started it tries again with another one.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
