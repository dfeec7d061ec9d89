"""Writes what in these documents follows from the code: ``python docs/generate.py``. A test runs it, too.

Whole files: configuration.md and api.md. Elsewhere the part between the two marks of a name.
"""

import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from xgen_ray.api import ApiKeys, ControlPlane, create_management_app
from xgen_ray.api.routes import BY_PATH
from xgen_ray.placement import ProfileSettings
from xgen_ray.placement.types import EngineOptions
from xgen_ray.process.failure_rows import CAUSES, EXIT_CODES, SIGNALS, SIGNALS_BEFORE_LINES, SYMPTOMS
from xgen_ray.process.types import FailureClass
from xgen_ray.schema import LoadRequest, Scaling
from xgen_ray.serving.metrics.rows import METRICS
from xgen_ray.settings import ControlSettings, RouterSettings

REPOSITORY = Path(__file__).resolve().parents[1]
MADE = "<!-- Made by docs/generate.py; change the code, then run `make docs`. -->"
PROFILE_ROW = (
    "An entry of `profiles:`, a row before those of `xgen_ray/placement/profiles.py`. It holds where all "
    "that it names holds; of several GPUs in use, one is enough. `{option: memory_bytes, value: 19327352832, "
    "device_apis: [vulkan], gfx: [gfx1151], reason: the desktop needs the rest}` lets each model have at "
    "most 18 GiB of such an APU through Vulkan, whatever is free; `xgen-ray plan` shows it where it decides."
)


def documents() -> Mapping[Path, str]:
    """What each file should be."""
    parts = {
        "cluster_configs/monitoring/README.md": {"metrics": metrics_table},
        "docs/troubleshooting.md": {"failures": failures},
    }
    made = {
        REPOSITORY / "docs/configuration.md": configuration(),
        REPOSITORY / "docs/api.md": api(),
    }
    for name, marks in parts.items():
        text = (REPOSITORY / name).read_text()
        for mark, make in marks.items():
            text = _between(text, mark, make)
        made[REPOSITORY / name] = text
    return made


def _between(text: str, mark: str, make: Callable[[], str]) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the marks of {mark!r} are missing")
    return f"{head}{begin}{make()}{end}{tail}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = tuple(header)
    lines = [names, tuple("---" for _ in names), *(tuple(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def metrics_table() -> str:
    rows = (
        (
            " ".join(f"`{name}`" for name in metric.series[:1]),
            metric.kind.value,
            ", ".join(metric.labels) or "-",
            metric.source.value,
            metric.help,
        )
        for metric in METRICS
    )
    return _table(("name", "kind", "labels", "told by", "what it is"), rows)


def failures() -> str:
    """A section for every class of failure, with everything that is said of it and what to do."""
    by_class: dict[FailureClass, dict[str, str]] = {failure: {} for failure in FailureClass}
    for row in (*CAUSES, *SYMPTOMS):
        message = re.sub(r"\{\w+\}", "…", row.message)
        by_class[row.failure].setdefault(message, row.advice)
    for table in (SIGNALS_BEFORE_LINES, SIGNALS):
        for number, (failure, message, advice) in table.items():
            by_class[failure].setdefault(f"{message} [{signal.Signals(number).name}]", advice)
    for failure, message, advice in EXIT_CODES.values():
        by_class[failure].setdefault(message, advice)
    sections = []
    for failure, said in by_class.items():
        if said:
            rows = _table(("what is said", "what to do"), said.items())
            sections.append(f"\n### {failure.value}\n\n{rows}")
    return "".join(sections) + "\n"


def configuration() -> str:
    parts: tuple[tuple[str, str, type[BaseModel]], ...] = (
        ("Control", "`args:` of the application `xgen-control` in a Serve config.", ControlSettings),
        ("A profile row", PROFILE_ROW, ProfileSettings),
        ("Router", "`args:` of the application `xgen-router`.", RouterSettings),
        ("A model", "An entry of `models:`, and the body of `POST /api/management/load`.", LoadRequest),
        ("Scaling", "`scaling:` of a model.", Scaling),
        ("Engine options", "`options:` of a model; `xgen-ray load -o NAME=VALUE`.", EngineOptions),
    )
    text = (
        f"# Configuration\n\n{MADE}\n\nA Serve config, such as `cluster_configs/one-machine.yaml`, has these "
        "fields; `xgen-ray up --help` has the options of the command line. Sizes are in bytes, times in "
        "seconds.\n"
    )
    for title, intro, model in parts:
        table = _table(("field", "type", "default", "what it is"), _fields(model))
        text += f"\n## {title}\n\n{intro}\n\n{table}"
    return text


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            default = "none" if field.default_factory is dict else "below the user's home, as XDG says"
        elif field.default is PydanticUndefined:
            default = "required"
        elif field.default in (None, (), "", frozenset()) or isinstance(field.default, BaseModel):
            default = "none"
        else:
            default = f"`{field.default}`"
        if not field.description:
            raise ValueError(f"{model.__name__}.{name} has no description")
        yield f"`{name}`", _type_of(properties[name]), default, field.description


def _type_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type_of(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if low is not None and high is not None:
        return f"{kind} {low}..{high}"
    bounds = ((" from", low), (" above", above), (" up to", high))
    return kind + ",".join(f"{word} {value}" for word, value in bounds if value is not None)


def api() -> str:
    app = create_management_app(cast("ControlPlane", None), ApiKeys())
    described = app.openapi()
    rows = []
    for path, methods in sorted(described["paths"].items()):
        for method, what in methods.items():
            asks = [f"`{one['name']}`" for one in what.get("parameters", ())]
            body = (
                what.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            )
            if body:
                asks.insert(0, _type_of(body))
            answer = what["responses"].get("200", {}).get("content", {}).get("application/json", {})
            shape = _type_of(answer["schema"]) if answer.get("schema") else "-"
            rows.append((f"`{method.upper()} /api{path}`", what["summary"], ", ".join(asks) or "-", shape))
    openai = "".join(f"- `POST {path}`\n" for path in sorted(BY_PATH))
    return (
        f"# API\n\n{MADE}\n\nWith keys, every request needs `Authorization: Bearer KEY`. Errors are "
        'OpenAI\'s: `{"error": {"message", "type", "param", "code"}}`.\n\n## OpenAI\n\n'
        f"- `GET /v1/models`, `GET /v1/models/NAME`\n{openai}\nBodies go to the engine untouched. Beyond "
        "OpenAI's: `x-session-id` keeps a session on one engine, `x-xgen-pool` asks for a pool, "
        "`x-request-id` is kept or made, answered, and passed to the engine; `x-xgen-backend`, "
        "`x-xgen-pool` and `x-xgen-replica` in the answer say who gave it.\n\n## Management\n\n"
        "`GET /api/management/openapi.json` has every field.\n\n"
        + _table(("request", "what it does", "asks", "answers"), rows)
    )


def main() -> None:
    for path, text in documents().items():
        if path.read_text() != text if path.exists() else True:
            path.write_text(text)
            sys.stderr.write(f"written: {path.relative_to(REPOSITORY)}\n")


if __name__ == "__main__":
    main()
