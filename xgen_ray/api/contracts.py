"""What the HTTP layer needs from the rest: two Protocols, implemented in ``xgen_ray.serving``."""

from typing import Protocol

from xgen_ray.console import EventsReport, LocalModelsReport, MemoryReport
from xgen_ray.schema import (
    BackendsReport,
    DrainReport,
    DrainRequest,
    Endpoint,
    FiguresReport,
    GPUsReport,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodesReport,
    Outcome,
    PlanReport,
    RequestHints,
    ScaleRequest,
    ServedModel,
    StatusReport,
    TargetGroup,
)


class Dispatcher(Protocol):
    """Knows which engine should serve a request."""

    async def informed(self, deadline_s: float) -> None:
        """Returns at once if it is known which models there are, else as soon as it is. Raises NotReady after
        ``deadline_s``.
        """

    def served(self) -> tuple[ServedModel, ...]:
        """Every model that has a name here, ready or not. Cheap: called for each request."""

    async def choose(
        self, model: str, *, deadline_s: float, avoid: frozenset[str], hints: RequestHints
    ) -> Endpoint:
        """Pick an engine that suits ``hints``, waiting at most ``deadline_s`` while the model loads or wakes.

        Never one of ``avoid``, the ids of replicas that just failed this request: the gateway lifts
        that ban itself after a pause, for the case that there is no other.

        Raises ModelNotFound, InvalidRequest, EngineFailed, or NotReady (with ``retry_after_s``) when the
        deadline has passed. Being cancelled while waiting leaves nothing behind.
        """

    def answering(self, endpoint: Endpoint) -> None:
        """The first byte of a good answer has come. Called at most once for every ``choose``."""

    def finished(self, endpoint: Endpoint, outcome: Outcome, *, units: int) -> None:
        """The request on ``endpoint`` is over. Called exactly once for every ``choose`` that returned.

        ``units`` is how much was answered: events of a stream, or a quarter of the bytes of a whole answer;
        about tokens.
        """

    def unserved(self, model: str, outcome: Outcome) -> None:
        """A request for which ``choose`` was asked got no engine in all that time: UNSERVED where it was
        refused, CANCELLED where its client left. Not called for one that was wrong itself.
        """


class ControlPlane(Protocol):
    """Carries out what an operator asks for."""

    async def load(self, request: LoadRequest, *, wait: bool) -> ModelStatus:
        """Start loading; with ``wait`` return once the model is ready, or raise why it is not.

        Cancelling the call ends the waiting, never the load. Loading what is loaded is no error.
        """

    async def unload(self, name: str, *, wait: bool) -> ModelStatus:
        """Stop serving ``name``; with ``wait`` return its last state once its engines are gone.

        Running requests may finish first. Cancelling the call ends the waiting, never the unload. Raises
        ModelNotFound.
        """

    async def restart(self, name: str) -> ModelStatus:
        """End the engines of ``name`` and load it again as it was asked for. Returns once it is on its way.

        Cancelling the call ends the waiting, never the restart. Raises ModelNotFound, WrongState for one that
        is being unloaded.
        """

    async def drain(self, request: DrainRequest) -> DrainReport:
        """Close a node, or open it again. Returns once that will outlive a restart. Raises InvalidRequest."""

    async def scale(self, request: ScaleRequest) -> ModelStatus:
        """Change how many replicas a model has, and nothing else. Raises ModelNotFound, WrongState."""

    async def status(self) -> StatusReport: ...

    async def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None
    ) -> LogPage:
        """At most ``limit`` lines that follow line ``after`` of the replica ``of``, while it lives; after
        that, what it printed last, and then the log of another from its start. ``of`` None: of whichever is
        there. Raises ModelNotFound.
        """

    async def plan(self, request: LoadRequest) -> PlanReport:
        """What ``load`` would do. A refusal is an answer with ``accepted`` false, not an error."""

    async def gpus(self) -> GPUsReport: ...

    async def backends(self) -> BackendsReport: ...

    async def nodes(self) -> NodesReport:
        """Every node, also one that does not answer, with why."""

    async def figures(self, since: float) -> FiguresReport:
        """Requests, tokens and times of the last hour, by model, in steps that ended after ``since``."""

    async def memory(self) -> MemoryReport:
        """How full every memory was in the last hour."""

    async def local_models(self) -> LocalModelsReport:
        """The models that lie under the nodes' model directories; of a node that gives no answer, that it
        gives none.
        """

    async def events(self) -> EventsReport:
        """What has happened lately. Cheap."""

    async def changed(self, known: str | None) -> str:
        """The stamp of what ``status`` and ``events`` tell, as soon as it is another than ``known``."""

    async def metrics_targets(self) -> tuple[TargetGroup, ...]:
        """Where Prometheus finds the metrics of every node that serves them."""

    async def lift(self, request: LiftRequest) -> None:
        """Forget what was learned against backends of a model. Raises ModelNotFound if nothing was."""
