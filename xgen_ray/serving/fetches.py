"""Downloads to this node, each once however many ask for it, and their progress for those who poll."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

from xgen_ray.errors import XgenRayError
from xgen_ray.models import ModelFacts, parse_source
from xgen_ray.models.threads import in_thread
from xgen_ray.schema import Progress

# A result that nobody has asked about for so long has no reader any more.
KEEP_S: Final = 600.0


class Sources(Protocol):
    """Brings files here. Blocks; ends soon after ``cancelled`` is set."""

    def fetch(
        self,
        model: str,
        on_progress: Callable[[Progress], None],
        cancelled: threading.Event,
        commit: str | None,
    ) -> ModelFacts: ...


@dataclass(frozen=True, slots=True)
class FetchState:
    """How far a fetch is. It is over when it has ``facts`` or an ``error``."""

    ticket: str
    model: str
    progress: Progress | None = None
    facts: ModelFacts | None = None
    error: XgenRayError | None = None

    @property
    def is_over(self) -> bool:
        return self.facts is not None or self.error is not None


@dataclass(slots=True)
class _Latest:
    progress: Progress | None = None

    def note(self, progress: Progress) -> None:
        self.progress = progress


@dataclass(slots=True, eq=False)
class _Flight:
    """One download. Its thread writes ``latest``; everything else belongs to the owner's event loop."""

    model: str
    wanted: tuple[str, str | None]
    cancelled: threading.Event
    outcome: Future[ModelFacts]
    latest: _Latest
    asked_at: float = 0.0


class Fetches:
    """Tickets are chosen by whoever asks, so that asking again after a lost answer is the same request."""

    def __init__(self, sources: Sources, clock: Callable[[], float] = time.monotonic) -> None:
        self._sources = sources
        self._clock = clock
        self._flights: dict[str, _Flight] = {}

    def start(self, ticket: str, model: str, commit: str | None = None) -> FetchState:
        """Fetches ``model``, as it was at ``commit`` if one is given, unless somebody does already; returns
        at once.

        Raises InvalidRequest for what names no model.
        """
        wanted = str(parse_source(model)), commit
        self._prune()
        known = self._flights.get(ticket)
        if known is None or known.wanted != wanted:
            self.drop(ticket)
            under_way = (one for one in self._flights.values() if one.wanted == wanted)
            self._flights[ticket] = next(
                (one for one in under_way if not one.outcome.done()), None
            ) or self._take_off(model, wanted)
        return self._state(ticket)

    def look(self, ticket: str) -> FetchState | None:
        """How far it is; None for a ticket that is not known here, such as one of an earlier life."""
        return self._state(ticket) if ticket in self._flights else None

    def drop(self, ticket: str) -> None:
        """Nobody will ask about ``ticket`` again. A download whose last ticket goes is cancelled; what it
        has fetched is kept on disk.
        """
        flight = self._flights.pop(ticket, None)
        if flight is not None and flight not in self._flights.values():
            flight.cancelled.set()

    def close(self) -> None:
        for ticket in list(self._flights):
            self.drop(ticket)

    def _take_off(self, model: str, wanted: tuple[str, str | None]) -> _Flight:
        cancelled, latest = threading.Event(), _Latest()
        outcome = in_thread(lambda: self._sources.fetch(model, latest.note, cancelled, wanted[1]))
        return _Flight(model, wanted, cancelled, outcome, latest)

    def _state(self, ticket: str) -> FetchState:
        flight = self._flights[ticket]
        flight.asked_at = self._clock()
        if not flight.outcome.done():
            return FetchState(ticket, flight.model, flight.latest.progress)
        error = flight.outcome.exception()
        if error is None:
            return FetchState(ticket, flight.model, flight.latest.progress, facts=flight.outcome.result())
        if not isinstance(error, XgenRayError):
            error = XgenRayError(f"{flight.model} could not be fetched: {error!r}")
        return FetchState(ticket, flight.model, flight.latest.progress, error=error)

    def _prune(self) -> None:
        oldest = self._clock() - KEEP_S
        for ticket, flight in list(self._flights.items()):
            if flight.outcome.done() and flight.asked_at < oldest:
                del self._flights[ticket]
