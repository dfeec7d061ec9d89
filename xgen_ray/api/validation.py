"""What a body must look like before an engine sees it.

Engines are lenient or crash where they should refuse (llama-server answers an empty ``messages`` with
200), so the obvious mistakes are caught here, with the field's name. Everything else is the engine's to
judge: unknown fields pass, and the bytes go on as they came.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pydantic_core import from_json, to_json

from xgen_ray.errors import InvalidRequest

# Says what the value should have been, or None when it is fine.
Check = Callable[[Any], str | None]
T = TypeVar("T")

# OpenAI's names for what should meet the same cache, and the bounds of an answer, most telling first.
_SESSION: Final = ("prompt_cache_key", "user")
_BOUNDS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class BodyRules:
    """Checks for one kind of body. ``one_of``: at least one of these must be there.

    ``mirror`` names two fields that mean the same to different engines: given one, both are sent.
    """

    required: Mapping[str, Check] = field(default_factory=dict)
    optional: Mapping[str, Check] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()
    mirror: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A body that passed. ``content`` is what the engine gets.

    ``session`` is what the client groups its requests by, for caches; ``max_tokens`` bounds the answer.
    """

    model: str
    content: bytes
    session: str | None = None
    max_tokens: int | None = None
    streamed: bool = False


def parse_body(body: bytes, rules: BodyRules, served: Callable[[], str]) -> ParsedBody:
    """Check ``body`` against ``rules``; raises InvalidRequest with the field at fault as ``param``.

    ``served`` describes the models that exist, for a request that names none.
    """
    fields = _object(body)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        problem = "is missing" if model is None else "must be a non-empty string"
        raise InvalidRequest(f"'model' {problem}. {served()}", "model")
    for name, check in rules.required.items():
        if name not in fields:
            raise InvalidRequest(f"{name!r} is missing: it {check(None)}.", name)
        _apply(check, name, fields[name])
    for name, check in rules.optional.items():
        # Clients send null for "not set".
        if (value := fields.get(name)) is not None:
            _apply(check, name, value)
    if rules.one_of and all(fields.get(name) is None for name in rules.one_of):
        names = " or ".join(repr(name) for name in rules.one_of)
        raise InvalidRequest(f"The body needs {names}.", rules.one_of[0])
    content = _mirrored(body, fields, rules.mirror) if rules.mirror else body
    return ParsedBody(
        model,
        content,
        _first(fields, _SESSION, str),
        _first(fields, _BOUNDS, int),
        fields.get("stream") is True,
    )


def _first(fields: Mapping[str, Any], names: tuple[str, ...], kind: type[T]) -> T | None:
    """The first of ``names`` that is given, and of that kind."""
    return next((value for name in names if isinstance(value := fields.get(name), kind) and value), None)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error} (of {len(body):,} bytes).") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object, not {_kind(value)}.")
    return value


def _apply(check: Check, name: str, value: Any) -> None:
    wanted = check(value)
    if wanted is not None:
        raise InvalidRequest(f"{name!r} {wanted}; the request has {_shown(value)}.", name)


def _mirrored(body: bytes, fields: Mapping[str, Any], pair: tuple[str, str]) -> bytes:
    """``body`` with the missing one of ``pair`` spliced in: all other bytes stay as they were."""
    for have, lack in (pair, pair[::-1]):
        if fields.get(have) is not None and lack not in fields:
            closing = body.rindex(b"}")
            return b"".join((body[:closing], b",", to_json(lack), b":", to_json(fields[have]), b"}"))
    return body


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, bool | int | float) else _kind(value)


def boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be a string"


def whole(minimum: int) -> Check:
    def check(value: Any) -> str | None:
        # bool is an int to Python, not to JSON.
        fine = isinstance(value, int) and not isinstance(value, bool) and value >= minimum
        return None if fine else f"must be an integer of at least {minimum}"

    return check


def number(minimum: float | None = None, maximum: float | None = None) -> Check:
    bounds = [f"at least {minimum:g}"] if minimum is not None else []
    bounds += [f"at most {maximum:g}"] if maximum is not None else []
    wanted = " ".join(("must be a number", *(["of"] if bounds else []), " and ".join(bounds))).rstrip()

    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return wanted
        low = minimum is not None and value < minimum
        high = maximum is not None and value > maximum
        return wanted if low or high else None

    return check


def filled_list(value: Any) -> str | None:
    return None if isinstance(value, list) and value else "must be a non-empty array"


def array(value: Any) -> str | None:
    return None if isinstance(value, list) else "must be an array"


def objects(value: Any) -> str | None:
    fine = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return None if fine else "must be an array of objects"


def mapping(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def messages(value: Any) -> str | None:
    fine = (
        isinstance(value, list)
        and value
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
    )
    return None if fine else "must be a non-empty array of messages, each an object with a 'role'"


def text_or_list(value: Any) -> str | None:
    """Prompts and inputs: a string, or a non-empty array (of strings, of tokens)."""
    fine = isinstance(value, str) or (isinstance(value, list) and value)
    return None if fine else "must be a string or a non-empty array"
