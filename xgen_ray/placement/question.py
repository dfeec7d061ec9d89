"""What a backend is weighed against, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts, ModelTask
from xgen_ray.placement.estimates import Observation
from xgen_ray.placement.fit import Shortage
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.types import (
    BackendRow,
    Candidate,
    EngineOptions,
    Fault,
    Footprint,
    GPUNeed,
    ProfileNote,
    ResolvedOptions,
)


class Cause(StrEnum):
    """Why a backend will not do, in the order in which it is asked."""

    NOT_ASKED = "not asked for"
    FORMAT = "format"
    EXCLUDED = "excluded"
    REQUEST = "request"
    ABSENT = "absent"
    DEVICE = "device"
    TAKEN = "taken"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Leased:
    """What other models hold on the node: CPU threads; GPUs that one has whole (``taken``), which nobody
    else may use; and all GPUs with a lease (``gpus``), which nobody else may have whole.
    """

    threads: int = 0
    taken: frozenset[str] = frozenset()
    gpus: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that a backend is weighed against."""

    facts: ModelFacts
    task: ModelTask
    options: EngineOptions
    snapshot: NodeSnapshot
    usage: NodeUsage | None
    policy: PlacementPolicy
    leased: Leased = field(default_factory=Leased)
    observations: tuple[Observation, ...] = ()

    @property
    def spread(self) -> bool:
        return self.policy.spread if self.options.spread is None else self.options.spread


@dataclass(frozen=True, slots=True)
class Weighed:
    """A candidate with what a plan needs of it (``options``) or what kind of no it is (``cause``).

    ``short`` is a lack of memory in short, for the sentence that sums a refusal up.
    """

    candidate: Candidate
    cause: Cause | None = None
    short: str | None = None
    options: ResolvedOptions | None = None
    notes: tuple[ProfileNote, ...] = ()
    warnings: tuple[str, ...] = ()
    gpu_needs: tuple[GPUNeed, ...] = ()


def no(
    row: BackendRow,
    cause: Cause,
    reasons: Sequence[str],
    faults: Sequence[Fault] = (),
) -> Weighed:
    return Weighed(Candidate(row.backend, False, tuple(reasons), faults=tuple(faults)), cause)


def too_little(row: BackendRow, short: Shortage, bill: Footprint | None) -> Weighed:
    """No, for want of memory."""
    reason = f"{short.text} ({short.why})"
    candidate = Candidate(
        row.backend, False, (reason,), bill, missing_bytes=short.missing_bytes, limited=short.limited
    )
    return Weighed(candidate, Cause.MEMORY, short=short.text)
