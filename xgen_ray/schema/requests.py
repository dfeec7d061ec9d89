"""What operators ask for."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from xgen_ray.models import default_name, parse_source
from xgen_ray.placement.types import Backend, EngineOptions
from xgen_ray.schema.wire import LOADED_PATTERN, NAME_PATTERN, POOL_PATTERN, Wire


class Scaling(Wire):
    """How the number of a model's replicas follows its load. Names that Ray Serve has mean what they mean
    there; "ongoing" are the requests that engines compute or hold back.
    """

    min_replicas: int = Field(1, ge=0, le=64, description="With 0 a model that nobody uses sleeps.")
    max_replicas: int = Field(1, ge=1, le=64, description="Never more, however much is asked.")
    target_ongoing_requests: float | None = Field(
        None, gt=0, le=4096, description="For each replica; by default as many as it computes at once."
    )
    upscale_delay_s: float = Field(
        5.0, ge=0, le=3600, description="For so long the load must ask for more before there are more."
    )
    downscale_delay_s: float = Field(
        60.0, ge=0, le=86_400, description="For so long it must ask for fewer before there are fewer."
    )
    keep_warm: int = Field(
        0, ge=0, le=64, description="So many more than the load needs while the model is in use."
    )
    cost: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Of a replica, by default that of its devices: a name's pools grow by speed per cost.",
    )
    ttl_s: float = Field(
        300.0, ge=0, le=30 * 86_400, description="With min_replicas 0: unused for so long, it sleeps."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas is {self.min_replicas}, max_replicas only {self.max_replicas}")
        return self


class LoadRequest(Wire):
    """Load a model and serve it under ``name`` (by default, made from the file or repository name)."""

    model: str = Field(
        min_length=1, max_length=1024, description="A path, hf:org/name or hf:org/name:file.gguf"
    )
    name: str | None = Field(
        None, pattern=NAME_PATTERN, description="What clients ask for; else made from the file's name."
    )
    pool: str | None = Field(
        None,
        pattern=POOL_PATTERN,
        description="One of several pools that serve this name; loaded, scaled and unloaded as name@pool.",
    )
    replicas: int = Field(1, ge=1, le=64, description="So many, whatever the load.")
    scaling: Scaling | None = Field(None, description="As many as the load asks for; instead of replicas.")
    nodes: tuple[str, ...] | None = Field(
        None, min_length=1, max_length=1024, description="Only on these nodes, by name or id."
    )
    evict: Literal["never", "idle"] = Field(
        "never", description="What may be unloaded when there is no room: models that nobody uses."
    )
    pinned: bool = Field(False, description="Nobody else's load may unload it or put it to sleep for room.")
    options: EngineOptions = Field(EngineOptions(), description="How the engine is to run it.")

    @property
    def loaded_as(self) -> str:
        """What it is loaded, scaled and unloaded as: the name that its model is served under, and the pool if
        it is one of several. Raises InvalidRequest for a source that cannot be read.
        """
        name = self.name or default_name(parse_source(self.model))
        return name if self.pool is None else f"{name}@{self.pool}"

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.scaling is not None and self.replicas != 1:
            raise ValueError("give either replicas, a fixed number, or scaling")
        return self


class ScaleRequest(Wire):
    """So many replicas of ``name`` from now on, or as many as its load asks for."""

    name: str = Field(pattern=LOADED_PATTERN)
    replicas: int | None = Field(None, ge=1, le=64)
    scaling: Scaling | None = None

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if (self.scaling is None) == (self.replicas is None):
            raise ValueError("give either replicas, a fixed number, or scaling")
        return self


class Origin(StrEnum):
    """Who asked for a model: the configuration file or the API."""

    DECLARED = "declared"
    API = "api"


class ChangeKind(StrEnum):
    """What applying a configuration does to a model. SCALE leaves its engines alone but for their number,
    RELOAD ends them and starts others, KEEP touches nothing.
    """

    LOAD = "load"
    UNLOAD = "unload"
    RELOAD = "reload"
    SCALE = "scale"
    KEEP = "keep"


class DeclaredChange(Wire):
    name: str
    kind: ChangeKind
    why: str


class LiftRequest(Wire):
    """Forget what was learned against backends of ``model``, or against one of them."""

    model: str = Field(min_length=1, max_length=1024)
    backend: Backend | None = None


class DrainRequest(Wire):
    """Take a node out of service before it is stopped, or put it back with ``lift``. ``node`` is its name or
    its id; it is remembered by its name, under which it may come back.
    """

    node: str = Field(min_length=1, max_length=256)
    lift: bool = False
