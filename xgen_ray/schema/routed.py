"""What routers and the gateway tell each other."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PoolInfo:
    """One of a model's pools, as clients see it. ``name`` is empty for the one without a name;
    ``precision`` is the quantisation of its weights, or their type.
    """

    name: str
    backends: tuple[str, ...]
    precision: str | None
    format: str | None
    context: int | None
    phase: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as ``/v1/models`` lists it. ``created`` is Unix seconds."""

    name: str
    created: int
    task: str
    ready: bool
    backend: str | None
    context: int | None
    pools: tuple[PoolInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine listens, and the key that opens it. Never leaves the router.

    ``ticket`` tells requests on the same engine apart, ``why`` what decided for it.
    """

    url: str
    key: str
    replica_id: str
    model: str
    backend: str
    pool: str = ""
    ticket: int = field(default=0, compare=False)
    why: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RequestHints:
    """What a request says that bears on the choice of its engine.

    ``session`` names what belongs together, ``pool`` the only pool that will do. ``body`` is the whole
    request. ``max_tokens`` bounds the answer. ``reads``: the model computes on the input, ``generates``: it
    also writes an answer, ``streamed``: which comes in events as it is written.
    """

    session: str | None = None
    pool: str | None = None
    body: bytes = field(default=b"", repr=False)
    max_tokens: int | None = None
    reads: bool = True
    generates: bool = True
    streamed: bool = True


NO_HINTS = RequestHints()
