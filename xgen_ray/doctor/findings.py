"""What a check says."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is, from nothing to "this node will not do"."""

    OK = "ok"
    # Worth knowing, nothing to do.
    NOTE = "note"
    # It runs, but worse than it could, or will stop running.
    WARNING = "warning"
    # Something does not work until it is mended.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``found`` has the numbers, ``advice`` what to do (warnings and
    problems always have one).
    """

    check: str
    level: Level
    found: str
    advice: str | None = None
