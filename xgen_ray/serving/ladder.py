"""What follows from a death: start again, shrink, fall to the next backend, or give the model up. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from xgen_ray.errors import BadModelFile, EngineFailed, InvalidRequest, XgenRayError
from xgen_ray.process.types import FailureClass

# Not an engine's failure: the replica found no lease of its app on the node.
NO_LEASE: Final = "no_lease"
# Deaths that lie further back than this say nothing about the next start.
WINDOW_S: Final = 600.0


class Step(StrEnum):
    """RESTART leaves it to Serve, which starts the replica again. DESCEND leaves this backend out for this
    model on this kind of node. SHRINK tries again with half the context. MOVE looks for a place anew, with
    nothing held against this one. GIVE_UP fails the load.
    """

    RESTART = "restart"
    SHRINK = "shrink"
    DESCEND = "descend"
    MOVE = "move"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Rule:
    """How a class of failure is met: after ``restarts`` more starts within the window, ``then``."""

    restarts: int
    then: Step
    reason: str


_SAME_AGAIN = "starting the same engine on this node again would end the same way"

RULES: Final[Mapping[FailureClass, Rule]] = MappingProxyType(
    {
        FailureClass.BAD_MODEL_FILE: Rule(0, Step.GIVE_UP, "no engine can read a bad file"),
        FailureClass.UNKNOWN_FLAG: Rule(0, Step.GIVE_UP, "the options are the caller's to mend"),
        FailureClass.UNSUPPORTED_ARCHITECTURE: Rule(0, Step.DESCEND, "another build may know the model"),
        FailureClass.OUT_OF_MEMORY: Rule(0, Step.SHRINK, "it needs less, or another device's memory"),
        FailureClass.GPU_PAGE_FAULT: Rule(1, Step.DESCEND, "a page fault may be chance once"),
        FailureClass.DEVICE_MISSING: Rule(0, Step.DESCEND, _SAME_AGAIN),
        FailureClass.DEVICE_PERMISSION: Rule(0, Step.DESCEND, _SAME_AGAIN),
        FailureClass.MISSING_LIBRARY: Rule(0, Step.DESCEND, _SAME_AGAIN),
        FailureClass.MISSING_BINARY: Rule(0, Step.DESCEND, _SAME_AGAIN),
        FailureClass.ILLEGAL_INSTRUCTION: Rule(0, Step.DESCEND, _SAME_AGAIN),
        FailureClass.NOT_READY_IN_TIME: Rule(0, Step.DESCEND, "it had all the time its size allows"),
        FailureClass.CANARY_FAILED: Rule(0, Step.DESCEND, "it runs and cannot compute"),
        FailureClass.WEDGED: Rule(1, Step.DESCEND, "it had worked, and may again after a fresh start"),
        FailureClass.PORT_IN_USE: Rule(2, Step.DESCEND, "the next start takes another port"),
        FailureClass.STOPPED: Rule(2, Step.DESCEND, "it ended by itself without a reason"),
        FailureClass.CRASHED: Rule(2, Step.DESCEND, "a crash may be chance"),
        # Mostly the doing of somebody else on the node, not the backend's.
        FailureClass.KILLED: Rule(4, Step.DESCEND, "it was killed from outside"),
    }
)


# What no later try mends by itself.
_FINAL = frozenset(kind.value for kind, rule in RULES.items() if rule.then is Step.GIVE_UP)


def is_final(error: XgenRayError) -> bool:
    """Whether the file or the request is at fault, so that no load ends otherwise until one is mended."""
    if isinstance(error, EngineFailed):
        return error.failure in _FINAL
    return isinstance(error, BadModelFile | InvalidRequest)


def next_step(deaths: Sequence[tuple[float, str]], *, can_shrink: bool) -> tuple[Step, str]:
    """The step after the first of ``deaths`` (latest first), and why.

    Deaths of the same class within the window count against the rule's restarts.
    """
    at, failure = deaths[0]
    if failure == NO_LEASE:
        return Step.MOVE, "its memory was given to somebody else"
    known = failure in set(FailureClass)
    rule = RULES[FailureClass(failure)] if known else RULES[FailureClass.CRASHED]
    alike = sum(1 for moment, other in deaths if other == failure and moment > at - WINDOW_S)
    if alike <= rule.restarts:
        return Step.RESTART, f"{rule.reason}: start {alike + 1} of {rule.restarts + 1}"
    if rule.then is Step.SHRINK and not can_shrink:
        return Step.DESCEND, rule.reason
    return rule.then, rule.reason
