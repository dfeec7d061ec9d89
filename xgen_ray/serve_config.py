"""A Serve config of ours, checked as a whole before anything is done with it: every problem has its line.

Ray Serve itself looks at the arguments of an application only once it builds it, when it has already let go
of the one before. So what is deployed by us is looked at first, here, without a cluster.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xgen_ray.errors import ConfigError
from xgen_ray.settings import (
    CONTROL_APP,
    ROUTER_APP,
    ControlSettings,
    RouterSettings,
    Settings,
    is_loopback,
    require_reachable_routers,
)

CONTROL_PATH: Final = "deployments.app:control"
ROUTER_PATH: Final = "deployments.app:router"
# What Serve listens on where a config does not say.
_SERVES_HOST: Final = "0.0.0.0"  # noqa: S104
_NAMES: Final = MappingProxyType({CONTROL_PATH: CONTROL_APP, ROUTER_PATH: ROUTER_APP})
_SHOWN: Final = 10

Place = tuple[str | int, ...]
Arguments = TypeVar("Arguments", bound=Settings)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """``content`` is the file's, as Serve takes it; ``control`` the arguments of our application, if it is
    there; ``key_files`` the files of keys that both of ours name.
    """

    path: Path
    content: Mapping[str, Any]
    control: ControlSettings | None
    key_files: frozenset[Path]


@dataclass(frozen=True, slots=True)
class _Problem:
    place: Place
    told: str


def read_serve_config(path: Path, serves_schema: type[BaseModel]) -> ServeConfig:
    """The file, if Serve and both of our applications take it. Raises ConfigError with all that is wrong.

    ``serves_schema`` is Serve's own, which this module does not import.
    """
    document = _Document(path)
    problems = [*document.repeated(), *_problems(document.content, serves_schema)]
    if problems:
        raise ConfigError("\n".join(_told(path, document, problems)))
    content = document.content
    controls = [ControlSettings.model_validate(given) for _, given in _arguments(content, CONTROL_PATH)]
    routers = [RouterSettings.model_validate(given) for _, given in _arguments(content, ROUTER_PATH)]
    key_files = frozenset(one.api_keys_file for one in (*controls, *routers) if one.api_keys_file is not None)
    return ServeConfig(path, content, controls[0] if controls else None, key_files)


class _Document:
    """A YAML file and where in it each value stands. Raises ConfigError for what is no YAML."""

    def __init__(self, path: Path) -> None:
        try:
            loader = yaml.SafeLoader(path.read_text())
            try:
                node = loader.get_single_node()
                self.content: Any = None if node is None else loader.construct_document(node)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
            raise ConfigError(f"{path}{line}: it is no YAML: {error.problem or error}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        self._root = node

    def line(self, place: Place) -> int:
        """The line of what is nearest to ``place`` of what is there."""
        node, line = self._root, 1
        for step in place:
            if isinstance(node, yaml.MappingNode):
                found = [pair for pair in node.value if pair[0].value == step]
                if not found:
                    return line
                key, node = found[-1]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                return line
        return line

    def repeated(self) -> Iterator[_Problem]:
        """Keys that are there twice: YAML readers take the last and say nothing."""
        yield from _repeated(self._root, (), set())


def _repeated(node: Any, place: Place, seen: set[int]) -> Iterator[_Problem]:
    # What an alias stands for is looked at once.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    yield _Problem((*place, key.value), f"it is already given in line {lines[key.value]}")
                lines[key.value] = key.start_mark.line + 1
                yield from _repeated(value, (*place, key.value), seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _repeated(value, (*place, index), seen)


def _problems(content: Any, serves_schema: type[BaseModel]) -> Iterator[_Problem]:
    try:
        serves_schema.model_validate(content)
    except ValidationError as error:
        yield from (_Problem(_place_of(one), _words(one)) for one in error.errors())
        return
    for index, application in enumerate(content["applications"]):
        path, name = application["import_path"], application.get("name")
        if path in _NAMES and name != _NAMES[path]:
            place = ("applications", index, "name")
            yield _Problem(place, f"it must be {_NAMES[path]}, by which the others find it (got {name!r})")
    try:
        require_reachable_routers(_host(content))
    except ConfigError as error:
        yield _Problem(("http_options", "host"), error.message)
    yield from _of_arguments(content, CONTROL_PATH, ControlSettings)
    yield from _of_arguments(content, ROUTER_PATH, RouterSettings)


def _of_arguments(content: Any, import_path: str, settings: type[Arguments]) -> Iterator[_Problem]:
    host = _host(content)
    for place, given in _arguments(content, import_path):
        try:
            arguments = settings.model_validate(given)
        except ValidationError as error:
            yield from (_Problem((*place, *_place_of(one)), _words(one)) for one in error.errors())
            continue
        if arguments.api_keys_file is None and not is_loopback(host):
            yield _Problem(
                place,
                f"api_keys_file is missing, and others can reach {host}: they could use and unload the "
                "models. Give it to both applications, or set host to 127.0.0.1 in http_options",
            )
        if isinstance(arguments, RouterSettings) and arguments.otlp_endpoint is not None:
            yield from _of_tracing((*place, "otlp_endpoint"), arguments.otlp_endpoint)


def _of_tracing(place: Place, endpoint: str) -> Iterator[_Problem]:
    """A router that cannot send traces does not start."""
    # It brings the API along, which a config without it does without.
    from xgen_ray.api.tracing import require_tracing

    try:
        require_tracing(endpoint)
    except ConfigError as error:
        yield _Problem(place, f"{error.message}, here and on the head, where routers run")


def _host(content: Mapping[str, Any]) -> str:
    host: str = (content.get("http_options") or {}).get("host", _SERVES_HOST)
    return host


def _arguments(content: Any, import_path: str) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Where the arguments of each application with this path are, and what they are."""
    for index, application in enumerate(content["applications"]):
        if application["import_path"] == import_path:
            yield ("applications", index, "args"), application.get("args") or {}


def _place_of(error: ErrorDetails) -> Place:
    """Our own validators know better than pydantic where in a list the fault is."""
    within: Sequence[str | int] = error.get("ctx", {}).get("within", ())
    return (*error["loc"], *within)


def _words(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _told(path: Path, document: _Document, problems: Sequence[_Problem]) -> Iterator[str]:
    located = sorted((document.line(one.place), _field(one.place), one.told) for one in problems)
    for line, field, told in located[:_SHOWN]:
        yield f"{path}:{line}: {field}: {told}" if field else f"{path}:{line}: {told}"
    if len(located) > _SHOWN:
        yield f"and {len(located) - _SHOWN} more"


def _field(place: Place) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")
