"""Whether an engine may be asked: it backs off after failures, and comes back by a single trial."""

from xgen_ray.serving.routing.rules import RoutingRules

_DOUBLINGS = 16


class Health:
    """One engine's record. Failures of requests that began before the last failure was known tell nothing
    new: an engine that dies takes all its requests with it, and that is one failure.
    """

    __slots__ = ("_failed_at", "_rules", "_trial", "blocked_until", "failures")

    def __init__(self, rules: RoutingRules) -> None:
        self._rules = rules
        self._failed_at = float("-inf")
        self._trial: int | None = None
        self.failures = 0
        self.blocked_until = float("-inf")

    @property
    def well(self) -> bool:
        """Nothing is held against it, now or for the next trial."""
        return self.failures == 0 and self.blocked_until == float("-inf")

    def may_be_asked(self, now: float) -> bool:
        return now >= self.blocked_until and self._trial is None

    def chosen(self, ticket: int) -> None:
        """After failures, this request is the trial, and the only one until its answer begins."""
        if self.failures:
            self._trial = ticket

    def answering(self, ticket: int) -> None:
        """The next one may come. Only the end of an answer clears the record: it may still break off."""
        self._over(ticket)

    def failed(self, ticket: int, started: float, now: float) -> None:
        self._over(ticket)
        if started <= self._failed_at:
            return
        self._failed_at = now
        self.failures += 1
        pause = self._rules.backoff_s * 2 ** min(self.failures - 1, _DOUBLINGS)
        self.blocked_until = now + min(pause, self._rules.backoff_max_s)

    def full(self, ticket: int, now: float) -> None:
        """It answers, but takes no more for now: no failure, and no news for one that has failed."""
        self._over(ticket)
        self.blocked_until = max(self.blocked_until, now + self._rules.full_s)

    def answered(self, ticket: int, started: float) -> None:
        """It did what it was asked. One that was asked before it failed proves nothing for afterwards."""
        self._over(ticket)
        if started > self._failed_at:
            self.failures = 0
            self.blocked_until = float("-inf")
            self._trial = None

    def undecided(self, ticket: int) -> None:
        """The request ended by the client's doing."""
        self._over(ticket)

    def _over(self, ticket: int) -> None:
        if self._trial == ticket:
            self._trial = None
