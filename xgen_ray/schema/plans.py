"""A plan, or why there is none, as it is told."""

from pydantic import Field

from xgen_ray.placement.types import Backend
from xgen_ray.schema.wire import Wire


class FootprintLine(Wire):
    name: str
    size_bytes: int
    on_gpu: bool
    detail: str


class GPUVerdictReport(Wire):
    """What a backend says of one GPU of the node. ``id`` is the GPU's place there, as in ``gpus``.

    ``fits`` tells that it would do, alone or with others; ``chosen`` that a replica on this node would be put
    there (``assignments`` has the nodes that get one). ``reason`` is never empty, and has the numbers.
    """

    id: int
    name: str
    chosen: bool
    fits: bool
    reason: str


class CandidateReport(Wire):
    """One backend as it was weighed for this model, on one node.

    ``gpus`` has all of the node's in a plan that was asked for; it is empty where ``reasons`` hold for all of
    them, for a backend that needs none, and in the status of a model.
    """

    backend: Backend
    fits: bool
    reasons: tuple[str, ...]
    needs_bytes: int | None = None
    node: str | None = None
    gpus: tuple[GPUVerdictReport, ...] = ()


class AssignmentReport(Wire):
    """Where one replica goes, or would go."""

    node: str
    backend: Backend
    gpus: tuple[str, ...]
    footprint_bytes: int
    why: str


class FaultReport(Wire):
    """What is wrong with one of the options of a load, for a form to show beside its field."""

    option: str
    message: str


class VerdictReport(Wire):
    """What was said of one node: ``reasons`` are why not, or how it ranks. ``fits`` is None where nobody
    weighed the model, since enough other nodes looked better.
    """

    node: str
    fits: bool | None
    reasons: tuple[str, ...]
    candidates: tuple[CandidateReport, ...] = ()


class PlanReport(Wire):
    """What would be done (``accepted``), or why nothing can be, without doing it.

    ``backend`` to ``argv`` are those of the first replica; ``assignments`` has all. ``candidates`` are those
    of all ``nodes`` again, which then are the ones to tell of each GPU. ``evict`` are the idle models that
    would leave, or whose leaving would help a load with ``evict: idle``. ``missing`` of the replicas have no
    place, and ``shortfall`` says why. ``faults`` are the options that a refusal blames.
    """

    accepted: bool
    model: str
    message: str
    backend: Backend | None = None
    why: str | None = None
    gpus: tuple[str, ...] = ()
    options: dict[str, object] = Field(default_factory=dict)
    footprint: tuple[FootprintLine, ...] = ()
    footprint_bytes: int | None = None
    candidates: tuple[CandidateReport, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    assignments: tuple[AssignmentReport, ...] = ()
    nodes: tuple[VerdictReport, ...] = ()
    evict: tuple[str, ...] = ()
    missing: int = 0
    shortfall: str | None = None
    format: str | None = None
    faults: tuple[FaultReport, ...] = ()
