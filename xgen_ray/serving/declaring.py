"""What the configuration declares, and what follows from a change of it.

A declared name belongs to the configuration. What was loaded under it through the API becomes declared, and
changes to what the configuration says; what the API asks otherwise of it is refused. An operator may scale it
or unload it by hand: the scale holds until the configuration says another one, the unload until control
starts again. A model that the configuration does not know is nobody's but the API's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from xgen_ray.errors import WrongState
from xgen_ray.schema import ChangeKind, DeclaredChange, LoadRequest, Phase
from xgen_ray.serving.sizing import follow_request
from xgen_ray.serving.state import Model
from xgen_ray.serving.turn import Turn
from xgen_ray.serving.wishes import asked_anew, begin_again, leave, new_model

# What may change while engines run.
_WHILE_IT_RUNS = frozenset({"replicas", "scaling", "evict", "pinned"})


def changes_of(
    models: Mapping[str, Model], declared: Mapping[str, LoadRequest]
) -> tuple[DeclaredChange, ...]:
    """What applying ``declared`` does to each model that it names, or that it named before: first those that
    leave, so that they make room, then the others in its order.
    """
    known = {name: model for name, model in models.items() if model.phase is not Phase.UNLOADING}
    gone = [name for name, model in known.items() if model.declared is not None and name not in declared]
    return (
        *(DeclaredChange(name=name, kind=ChangeKind.UNLOAD, why="no longer declared") for name in gone),
        *(_change(name, known.get(name), request) for name, request in declared.items()),
    )


def _change(name: str, model: Model | None, request: LoadRequest) -> DeclaredChange:
    if model is None:
        return DeclaredChange(name=name, kind=ChangeKind.LOAD, why="newly declared")
    if model.declared == request:
        return DeclaredChange(name=name, kind=ChangeKind.KEEP, why="unchanged")
    differences = dict(_differences(model.request, request))
    if not differences:
        why = "loaded through the API as declared now" if model.declared is None else "as it already runs"
        return DeclaredChange(name=name, kind=ChangeKind.KEEP, why=why)
    kind = ChangeKind.SCALE if differences.keys() <= _WHILE_IT_RUNS else ChangeKind.RELOAD
    return DeclaredChange(name=name, kind=kind, why="; ".join(differences.values()))


def _differences(old: LoadRequest, new: LoadRequest) -> Iterator[tuple[str, str]]:
    """Each field that differs, and how: its parts where it has some."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    for name in after:
        was, is_now = before[name], after[name]
        if was == is_now:
            continue
        if isinstance(was, dict) and isinstance(is_now, dict):
            parts = [f"{name}.{key} {_word(was[key])} -> {_word(is_now[key])}" for key in is_now]
            changed = [part for key, part in zip(is_now, parts, strict=True) if was[key] != is_now[key]]
            yield name, ", ".join(changed)
        else:
            yield name, f"{name} {_word(was)} -> {_word(is_now)}"


def _word(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_word(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)


def declare(turn: Turn, declared: Mapping[str, LoadRequest], at: float) -> None:
    """Brings the models in line with the configuration. What it says as before is not touched."""
    for change in changes_of(turn.models, declared):
        model = turn.models.get(change.name)
        if model is None or model.phase is Phase.UNLOADING:
            request = declared[change.name]
            turn.seek(new_model(change.name, request, at, declared=request), at, "declared")
        elif change.kind is ChangeKind.UNLOAD:
            reason = "unloading: the configuration no longer declares it; running requests may finish"
            leave(turn, model, at, reason, WrongState(f"{model.name} is no longer declared"))
        elif change.kind is ChangeKind.KEEP:
            _note(turn, model, declared[change.name])
        elif change.kind is ChangeKind.SCALE:
            model = _note(turn, replace(model, request=declared[change.name]), declared[change.name])
            follow_request(turn, model, at, "the configuration asks for")
        else:
            _reload(turn, model, declared[change.name], at, f"reloading: {change.why}")


def _note(turn: Turn, model: Model, request: LoadRequest) -> Model:
    """What the configuration says is remembered, so that the next change of it is seen as one."""
    if model.declared == request and turn.models[model.name] is model:
        return model
    noted = turn.put(replace(model, declared=request))
    turn.remember(noted)
    return noted


def _reload(turn: Turn, model: Model, request: LoadRequest, at: float, reason: str) -> None:
    fresh = replace(asked_anew(model, request), declared=request, facts=None)
    if model.phase is Phase.SLEEPING and request.scaling is not None and request.scaling.min_replicas == 0:
        turn.remember(turn.put(replace(fresh, wanted=0)))
        return
    begin_again(turn, replace(fresh, proven=False), at, reason)
