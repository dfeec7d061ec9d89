"""What the page asks for beyond the management bodies of ``schema``: who is asking, what has happened, what
can be chosen.
"""

from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import Field

from xgen_ray.placement.types import Backend
from xgen_ray.schema import FailureReport, ModelStatus, NodeReport, Wire


class Role(StrEnum):
    """What a key is good for: everything, or asking models and looking on."""

    MANAGE = "manage"
    INFER = "infer"

    @property
    def may_manage(self) -> bool:
        return self is Role.MANAGE


class KeyEntry(NamedTuple):
    """An API key as an operator gives it."""

    name: str
    key: str
    role: Role = Role.MANAGE


class SessionReport(Wire):
    """Who is asking. ``key`` is the key's name, None on a server without keys; ``links`` lead to other
    pages about this fleet (the Ray dashboard, Grafana), by name.
    """

    key: str | None
    role: Role
    version: str
    links: dict[str, str] = Field(default_factory=dict)


class EventKind(StrEnum):
    """What can happen to a fleet."""

    STARTED = "started"
    NODE_JOINED = "node_joined"
    NODE_LOST = "node_lost"
    NODE_DRAINED = "node_drained"
    NODE_EMPTY = "node_empty"
    NODE_OPENED = "node_opened"
    ASKED = "asked"
    READY = "ready"
    MOVED = "moved"
    DEATH = "death"
    DEMOTED = "demoted"
    LIFTED = "lifted"
    FAILED = "failed"
    SCALED = "scaled"
    SLEPT = "slept"
    AWAITS = "awaits"
    WOKE = "woke"
    UNLOADED = "unloaded"


class EventReport(Wire):
    """One thing that happened, at Unix seconds. ``failure`` has the forensics of a death."""

    id: str
    at: float
    kind: EventKind
    level: Literal["info", "warning", "error"]
    message: str
    model: str | None = None
    node: str | None = None
    backend: Backend | None = None
    failure: FailureReport | None = None


class EventsReport(Wire):
    """Newest first. ``life`` is another one for each life of control."""

    life: str
    events: tuple[EventReport, ...]


class LocalModel(Wire):
    """A model that lies under a node's model directories. ``model`` is what to load it by."""

    model: str
    name: str
    format: str
    size_bytes: int
    nodes: tuple[str, ...]


class LocalModelsReport(Wire):
    """``incomplete`` says what was left out, and why."""

    models: tuple[LocalModel, ...]
    incomplete: tuple[str, ...] = ()


class OptionReport(Wire):
    """One field of a load's ``options``, as a form shows it. ``label`` is the key of its name in the page's
    texts, ``essential`` tells the few that most people set from the rest.
    """

    name: str
    label: str
    type: Literal["integer", "number", "boolean", "choice", "text", "list"]
    essential: bool
    description: str | None = None
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


class BackendChoice(Wire):
    """A backend as a form offers it, with the names of the options that it has."""

    backend: Backend
    engine: str
    device: str
    formats: tuple[str, ...]
    uses_gpus: bool
    options: tuple[str, ...]


class OptionsReport(Wire):
    """Everything that a load can be told. Backends in the order in which their format prefers them."""

    options: tuple[OptionReport, ...]
    backends: tuple[BackendChoice, ...]


class MemoryLine(Wire):
    """Bytes in use of one memory over time: of the node's GPU with this ``id``, or of its RAM (None)."""

    node: str
    gpu: int | None
    label: str
    total_bytes: int
    points: tuple[tuple[float, int], ...]


class MemoryReport(Wire):
    """The last hour of every memory of the fleet."""

    lines: tuple[MemoryLine, ...]


class Snapshot(Wire):
    """Everything that the stream is about, as it is when somebody begins to follow it. ``nodes`` is None as
    long as none has been asked.
    """

    life: str
    models: tuple[ModelStatus, ...]
    nodes: tuple[NodeReport, ...] | None
    events: tuple[EventReport, ...]
