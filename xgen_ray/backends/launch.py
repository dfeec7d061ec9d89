"""A decided command, and who decides it."""

from dataclasses import dataclass
from typing import Protocol

from xgen_ray.process import LaunchSpec


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to start, and in ``notes`` what this build could not be told.

    ``maps_model``: the program's own memory tells how much of the model it has read.
    """

    spec: LaunchSpec
    notes: tuple[str, ...] = ()
    maps_model: bool = True


class Launcher(Protocol):
    """Decides the command of one engine, for one port and key."""

    async def __call__(self, port: int, key: str) -> Launch: ...


def base_url(host: str, port: int) -> str:
    """Where an engine that listens on ``host`` is asked."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
