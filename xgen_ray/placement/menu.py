"""The options as data, for whoever draws a form: type, bounds, choices, and which backend has which."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from xgen_ray.models.types import ModelFormat
from xgen_ray.placement.options import OPTION_BACKENDS
from xgen_ray.placement.rows import BACKENDS, preference
from xgen_ray.placement.types import Backend, BackendRow, EngineOptions

OptionType = Literal["integer", "number", "boolean", "choice", "text", "list"]

# What most people set, in the order in which they think of it. The rest follows as ``EngineOptions`` has it.
ESSENTIAL: Final = (
    "context",
    "slots",
    "split_mode",
    "tensor_parallel_size",
    "gpu_memory_utilization",
)
# These two are asked for in ways of their own: from the list of backends, and from that of GPUs.
_CHOSEN_ELSEWHERE: Final = frozenset({"backend", "gpus"})


@dataclass(frozen=True, slots=True)
class OptionRow:
    """One option. ``choices`` of a choice are all that it may be."""

    name: str
    type: OptionType
    essential: bool
    description: str | None = None
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


def option_rows() -> tuple[OptionRow, ...]:
    """Every option that a form has a field for, the essential ones first."""
    schema = EngineOptions.model_json_schema()
    fields: Mapping[str, Mapping[str, Any]] = schema["properties"]
    names = [*ESSENTIAL, *(name for name in fields if name not in (*ESSENTIAL, *_CHOSEN_ELSEWHERE))]
    return tuple(_row(name, fields[name], schema.get("$defs", {})) for name in names)


def options_of(backend: Backend) -> tuple[str, ...]:
    """The names of the options that ``backend`` has, those that a form draws by itself included."""
    return tuple(name for name, backends in OPTION_BACKENDS.items() if backend in backends)


def backends_in_order() -> tuple[BackendRow, ...]:
    """Every backend once: those of each format as that format prefers them."""
    ordered = {backend: None for model_format in ModelFormat for backend in preference(model_format)}
    able = [backend for backend in ordered if BACKENDS[backend].formats]
    return tuple(BACKENDS[backend] for backend in able)


def _row(name: str, field: Mapping[str, Any], named: Mapping[str, Any]) -> OptionRow:
    value = next((one for one in field.get("anyOf", [field]) if one.get("type") != "null"), field)
    if "$ref" in value:
        value = named[value["$ref"].rpartition("/")[2]]
    return OptionRow(
        name=name,
        type=_type(value),
        essential=name in ESSENTIAL,
        description=field.get("description"),
        minimum=value.get("minimum"),
        exclusive_minimum=value.get("exclusiveMinimum"),
        maximum=value.get("maximum"),
        choices=tuple(value.get("enum", ())),
    )


def _type(value: Mapping[str, Any]) -> OptionType:
    if "enum" in value:
        return "choice"
    kinds: dict[str, OptionType] = {
        "integer": "integer",
        "number": "number",
        "boolean": "boolean",
        "array": "list",
    }
    return kinds.get(value["type"], "text")
