"""One step in the making: the models as they change, and the effects in their order."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from xgen_ray.errors import XgenRayError
from xgen_ray.schema import Origin, Phase
from xgen_ray.serving.routes import routes_of
from xgen_ray.serving.state import (
    Answer,
    ControlState,
    Effect,
    Forget,
    Model,
    PoolState,
    Publish,
    Record,
    Remember,
    Resolve,
    StopPool,
)
from xgen_ray.serving.table import RoutingTable

POOL_PREFIX = "xgen-pool-"
# A declared model, and one that has served, are tried again after a failure: a hub or a disk comes back.
FIRST_RETRY_S = 15.0
LONGEST_RETRY_S = 600.0


def pool_name(model: str, epoch: str, attempt: int) -> str:
    """A Serve application name for one load of ``model``; readable, and never used twice."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")[:40]
    return f"{POOL_PREFIX}{slug}-{epoch}-{attempt}"


@dataclass
class Turn:
    """One step in the making: the models as they change, and the effects in their order."""

    before: ControlState
    models: dict[str, Model] = field(init=False)
    strays: set[str] = field(init=False)
    attempts: int = field(init=False)
    epoch: str = field(init=False)
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = dict(self.before.models)
        self.strays = set(self.before.stray_pools)
        self.attempts = self.before.attempts
        self.epoch = self.before.epoch

    def put(self, model: Model) -> Model:
        self.models[model.name] = model
        return model

    def current(self, name: str, attempt: int) -> Model | None:
        """The model, if this attempt to resolve its source is still the one that counts."""
        model = self.models.get(name)
        resolving = model is not None and model.phase is Phase.RESOLVING and model.attempt == attempt
        return model if resolving else None

    def owner(self, pool: str) -> Model | None:
        return next((model for model in self.models.values() if model.pool == pool), None)

    def answer(self, model: Model, error: XgenRayError | None) -> Model:
        """Answers everyone who waits for the load to end."""
        self.effects += [Answer(caller, model.name, error) for caller in sorted(model.callers)]
        return self.put(replace(model, callers=frozenset()))

    def remove(self, model: Model) -> None:
        self.effects += [Answer(caller, model.name) for caller in sorted(model.leavers)]
        del self.models[model.name]

    def begin(self, model: Model, at: float, reason: str) -> Model:
        """A new attempt, from the start."""
        self.attempts += 1
        fresh = self.put(
            replace(
                model,
                phase=Phase.RESOLVING,
                reason=reason,
                attempt=self.attempts,
                since=at,
                pool=None,
                pool_state=None,
                replicas={},
                plan=None,
                refusal=None,
                progress=None,
                retry_at=None,
            )
        )
        self.effects.append(Remember(record_of(fresh)))
        self.effects.append(Resolve(fresh.name, fresh.attempt, fresh.request))
        return fresh

    def finish(self) -> tuple[ControlState, tuple[Effect, ...]]:
        table = self.before.table
        routes = routes_of(self.models.values())
        if routes != table.routes or self.epoch != table.epoch:
            table = RoutingTable(self.epoch, table.version + 1, routes)
            # Routers learn first: nobody who was told of a change can meet a router that was not.
            answers = [effect for effect in self.effects if isinstance(effect, Answer)]
            others = [effect for effect in self.effects if not isinstance(effect, Answer)]
            self.effects = [*others, Publish(table), *answers]
        state = ControlState(self.epoch, self.attempts, self.models, frozenset(self.strays), table)
        return state, tuple(self.effects)


def record_of(model: Model) -> Record:
    return Record(
        model.name, model.request, model.origin, model.created, model.proven, model.plan, model.pool
    )


def fail(turn: Turn, model: Model, error: XgenRayError, at: float) -> None:
    """The load ends here. The wish is kept only if it has worked before."""
    if model.pool is not None:
        turn.effects.append(StopPool(model.pool))
    wished = model.proven or model.origin is Origin.DECLARED
    if not wished:
        turn.effects.append(Forget(model.name))
    pause = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**model.setbacks)
    failed = replace(
        model,
        phase=Phase.FAILED,
        reason=str(error),
        since=at,
        progress=None,
        pool_state=PoolState.STOPPING,
        setbacks=model.setbacks + 1,
        retry_at=at + pause if wished else None,
    )
    turn.answer(turn.put(failed), error)


def stop_strays(turn: Turn, pools: Mapping[str, PoolState]) -> None:
    owned = {model.pool for model in turn.models.values()}
    turn.strays = {pool for pool in pools if pool not in owned}
    for pool in sorted(turn.strays):
        insist(turn, pool, pools)


def insist(turn: Turn, pool: str | None, pools: Mapping[str, PoolState]) -> bool:
    """Whether the pool is still there. Its stop is asked for again while it does not look like stopping:
    the first one may have got lost.
    """
    if pool is None or pool not in pools:
        return False
    if pools[pool] is not PoolState.STOPPING:
        turn.effects.append(StopPool(pool))
    return True
