"""A decided command, and who decides it."""

from dataclasses import dataclass
from typing import Protocol

from xgen_ray.process import LaunchSpec


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to start, and in ``notes`` what this build could not be told."""

    spec: LaunchSpec
    notes: tuple[str, ...] = ()


class Launcher(Protocol):
    """Decides the command of one engine, for one port and key."""

    async def __call__(self, port: int, key: str) -> Launch: ...


def base_url(host: str, port: int) -> str:
    """Where an engine that listens on ``host`` is asked."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
