"""Options that several commands share, and ``EngineOptions`` read from the command line."""

import difflib
import os
import re
import shlex
import textwrap
import types
from collections.abc import Iterable, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError

from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.errors import ConfigError
from xgen_ray.placement.types import Backend, EngineOptions
from xgen_ray.schema import LoadRequest, ScaleRequest, Scaling

# Shown after an option that takes no value: nothing.
FLAG = ""

DEFAULT_URL = "http://127.0.0.1:8000"

_SERVER = "Server"
_ENGINE = "Engine"
_PLACE = "Place"
_SCALE = "Scale"
_HELP_WIDTH = 78
_FLAG_PREFIX = "--"
_ONE_SIZE = "Give either --replicas, a fixed number, or --min-replicas, --max-replicas, --ttl, --keep-warm."
# A name before a colon: hf:, and https:, which the server refuses in its own words.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class Eviction(StrEnum):
    """What a load may unload."""

    IDLE = "idle"
    NEVER = "never"


Url = Annotated[
    str, typer.Option("--url", envvar="XGEN_RAY_URL", help="Where the server is.", rich_help_panel=_SERVER)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="XGEN_RAY_API_KEY",
        metavar="KEY",
        show_default=False,
        help="The server's key. Other users of this machine can see it here: prefer the variable.",
        rich_help_panel=_SERVER,
    ),
]
Watch = Annotated[bool, typer.Option("--watch", "-w", metavar=FLAG, help="Go on until interrupted.")]
Interval = Annotated[
    float,
    typer.Option("--interval", min=0.1, metavar="SECONDS", help="Seconds between two looks of --watch."),
]
Json = Annotated[bool, typer.Option("--json", metavar=FLAG, help="Print JSON, for programs.")]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A GGUF file, a model folder, hf:org/name or hf:org/name:file.gguf.",
    ),
]
BackendChoice = Annotated[
    Backend | None,
    typer.Option(
        "--backend",
        metavar="BACKEND",
        help="Use this one of the list below, or refuse.",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
Context = Annotated[
    int | None,
    typer.Option("--context", help="Tokens of one request.", show_default=False, rich_help_panel=_ENGINE),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "--slots", help="Requests served at the same time.", show_default=False, rich_help_panel=_ENGINE
    ),
]
Nodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="NODE",
        help="Only on this node, by the name or id that nodes shows. May be given again.",
        show_default=False,
        rich_help_panel=_PLACE,
    ),
]
Evict = Annotated[
    Eviction,
    typer.Option(
        "--evict",
        metavar="idle|never",
        help="What may be unloaded to make room: models that nobody uses, or none.",
        rich_help_panel=_PLACE,
    ),
]
Spread = Annotated[
    bool,
    typer.Option(
        "--spread",
        metavar=FLAG,
        help="Take the emptiest GPU and node first, not the fullest.",
        rich_help_panel=_PLACE,
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(
        "--replicas",
        min=1,
        max=64,
        metavar="N",
        show_default=False,
        help="Engines to run, whatever the load; one unless said.",
        rich_help_panel=_SCALE,
    ),
]
MinReplicas = Annotated[
    int | None,
    typer.Option(
        "--min-replicas",
        min=0,
        max=64,
        metavar="N",
        show_default=False,
        help="Engines that stay; with 0 an unused model sleeps until a request comes.",
        rich_help_panel=_SCALE,
    ),
]
MaxReplicas = Annotated[
    int | None,
    typer.Option(
        "--max-replicas",
        min=1,
        max=64,
        metavar="N",
        show_default=False,
        help="As many engines as the load asks for, up to so many.",
        rich_help_panel=_SCALE,
    ),
]
Ttl = Annotated[
    float | None,
    typer.Option(
        "--ttl",
        min=0,
        metavar="SECONDS",
        show_default=False,
        help="Unused for so long, a model without --min-replicas sleeps.",
        rich_help_panel=_SCALE,
    ),
]
KeepWarm = Annotated[
    int | None,
    typer.Option(
        "--keep-warm",
        min=0,
        max=64,
        metavar="N",
        show_default=False,
        help="Engines to have ready beyond what the load needs, while the model is in use.",
        rich_help_panel=_SCALE,
    ),
]
Pin = Annotated[
    bool,
    typer.Option("--pin", help="Never unload it to make room for another."),
]
Gpus = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="Index or UUID of a GPU to use, or none for the CPU. May be given again.",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]
Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        metavar="BACKEND=COMMAND",
        help="Start this backend with this command instead of what is found; repeatable.",
    ),
]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="Any engine option of the list below. May be given again.",
        show_default=False,
        rich_help_panel=_ENGINE,
    ),
]


def scaling_of(
    minimum: int | None, maximum: int | None, ttl: float | None, keep_warm: int | None
) -> Scaling | None:
    """Return the rule that a command line asks for; None if it has none. A ttl alone means "may sleep"."""
    if minimum is None and maximum is None and ttl is None and keep_warm is None:
        return None
    if minimum is None:
        minimum = 1 if ttl is None else 0
    given: dict[str, float] = {"min_replicas": minimum, "max_replicas": maximum or max(1, minimum)}
    if ttl is not None:
        given["ttl_s"] = ttl
    if keep_warm is not None:
        given["keep_warm"] = keep_warm
    try:
        return Scaling.model_validate(given)
    except ValidationError as error:
        raise _usage(error, _FLAG_PREFIX) from None


def load_request(
    model: str,
    *,
    name: str | None = None,
    pool: str | None = None,
    replicas: int | None = None,
    scaling: Scaling | None = None,
    nodes: Sequence[str] | None = None,
    evict: Eviction = Eviction.NEVER,
    pinned: bool = False,
    spread: bool = False,
    backend: Backend | None = None,
    context: int | None = None,
    slots: int | None = None,
    gpus: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
) -> LoadRequest:
    """Return the request that a command line asks for. Raises ``CommandError`` with the field at fault."""
    options = engine_options(
        backend=backend, context=context, slots=slots, gpus=gpus, pairs=pairs, spread=spread
    )
    if replicas is not None and scaling is not None:
        raise CommandError(ExitCode.USAGE, _ONE_SIZE)
    size = {"replicas": replicas} if replicas is not None else {}
    try:
        return LoadRequest(
            model=absolute(model),
            name=name,
            pool=pool,
            **size,
            scaling=scaling,
            nodes=tuple(dict.fromkeys(nodes)) if nodes else None,
            evict=evict.value,
            pinned=pinned,
            options=options,
        )
    except ValidationError as error:
        raise _usage(error, _FLAG_PREFIX) from None


def scale_request(name: str, replicas: int | None, scaling: Scaling | None) -> ScaleRequest:
    """Return the request that a command line asks for. Raises ``CommandError`` with the field at fault."""
    if (scaling is None) == (replicas is None):
        raise CommandError(ExitCode.USAGE, _ONE_SIZE)
    try:
        return ScaleRequest(name=name, replicas=replicas, scaling=scaling)
    except ValidationError as error:
        raise _usage(error, "") from None


def engine_options(
    *,
    backend: Backend | None = None,
    context: int | None = None,
    slots: int | None = None,
    gpus: Sequence[str] | None = None,
    pairs: Sequence[str] | None = None,
    spread: bool = False,
) -> EngineOptions:
    """Return the options from their own flags and from ``name=value`` pairs; none may be given twice."""
    values: dict[str, Any] = {}
    flags = {"backend": backend, "context": context, "slots": slots}
    values.update({name: value for name, value in flags.items() if value is not None})
    if gpus:
        values["gpus"] = _gpus(gpus)
    if spread:
        values["spread"] = True
    for pair in pairs or ():
        name, value = _pair(pair)
        if name in values:
            message = f"The engine option {name} is given twice. Give it once."
            raise CommandError(ExitCode.USAGE, message)
        values[name] = value
    try:
        return EngineOptions.model_validate(values)
    except ValidationError as error:
        raise _usage(error, "the engine option ") from None


def engine_commands(pairs: Iterable[str]) -> dict[Backend, tuple[str, ...]]:
    """Return the engines that ``BACKEND=COMMAND`` pairs name. Raises what says why one is none."""
    commands: dict[Backend, tuple[str, ...]] = {}
    for pair in pairs:
        name, _, command = pair.partition("=")
        if name not in set(Backend) or not command.strip():
            raise ConfigError(
                f"--engine {pair!r}: give BACKEND=COMMAND, with one of the backends {', '.join(Backend)}"
            )
        commands[Backend(name)] = _shell_words(f"--engine {name}", command)
    return commands


def absolute(model: str) -> str:
    """Return a path as the server must see it. What is no path (``hf:org/name``, a URL) stays as it is."""
    if _SCHEME.match(model):
        return model
    # Not resolve(): a link's own name says more of a model than its target's.
    return os.path.normpath(Path(model).expanduser().absolute())


def option_list() -> str:
    """Return every engine option with its meaning and values, for the end of a command's help."""
    width = max(len(name) for name in EngineOptions.model_fields) + 4
    lines = ["", "Engine options for -o NAME=VALUE:", ""]
    for name, field in EngineOptions.model_fields.items():
        meaning = f". {field.description}" if field.description else ""
        lines += textwrap.wrap(
            _values(field.annotation) + meaning,
            width=_HELP_WIDTH,
            initial_indent=f"  {name}".ljust(width),
            subsequent_indent=" " * width,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _pair(pair: str) -> tuple[str, Any]:
    name, equals, text = pair.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        message = f"-o takes NAME=VALUE, not {pair!r}."
        raise CommandError(ExitCode.USAGE, message)
    if name not in EngineOptions.model_fields:
        close = difflib.get_close_matches(name, EngineOptions.model_fields, n=1)
        hint = f"Did you mean {close[0]}?" if close else "`xgen-ray load --help` lists them."
        message = f"There is no engine option {name!r}."
        raise CommandError(ExitCode.USAGE, message, hint)
    match name:
        case "gpus":
            return name, _gpus(text.split(","))
        case "extra_args":
            return name, _shell_words(name, text)
        case _:
            return name, text


def _gpus(texts: Sequence[str]) -> tuple[int | str, ...]:
    stripped = [part.strip() for text in texts for part in text.split(",")]
    if [text.lower() for text in stripped] in (["none"], ["cpu"], [""]):
        return ()
    return tuple(int(text) if text.isdecimal() else text for text in stripped)


def _shell_words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        message = f"{option} is cut into words as a shell does, and {text!r} has {error}."
        raise CommandError(ExitCode.USAGE, message) from None


def _values(annotation: Any) -> str:
    """Return the values that a field takes, in a word or two."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _values(next(argument for argument in arguments if argument is not type(None)))
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin is tuple:
        return "a list"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(str(member.value) for member in annotation)
    return {int: "a number", float: "a fraction", bool: "true, false"}.get(annotation, "text")


def _usage(error: ValidationError, prefix: str) -> CommandError:
    first = error.errors()[0]
    told = first["msg"].removeprefix("Value error, ")
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if not place:
        # Several fields together are at fault, and the words name them.
        return CommandError(ExitCode.USAGE, f"{told}.")
    if prefix == _FLAG_PREFIX:
        place = place.removesuffix("_s").replace("_", "-")
    given = f", got {first['input']!r}" if isinstance(first["input"], str | int | float) else ""
    return CommandError(ExitCode.USAGE, f"{prefix}{place}: {told}{given}.")
