"""The engines to measure, each reachable directly and through xgen-ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xgen_ray.bench import Target
from xgen_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pair:
    """One engine, asked in two ways. ``requests`` is a fair number for a round of a level."""

    name: str
    direct: Target
    through: Target
    requests: int


@contextmanager
def start_stack(say: Callable[[str], None]) -> Iterator[Sequence[Pair]]:
    """Start the whole stack with a fast stand-in engine and a real one; all of it is gone afterwards."""
    say("starting the stack")
    raise ConfigError("The stack is not started from here yet. Start it, and give --direct and --through.")
    yield ()
