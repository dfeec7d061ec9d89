"""The table of statuses covers the whole tree, and its bodies are OpenAI's."""

import json
from collections.abc import Iterator

import pytest

from xgen_ray import errors
from xgen_ray.api.errors import STATUS, ErrorReply, internal_error, reply_for


def _tree(base: type[errors.XgenRayError]) -> Iterator[type[errors.XgenRayError]]:
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from _tree(child)


@pytest.mark.parametrize("kind", list(_tree(errors.XgenRayError)))
def test_every_error_has_a_row_of_its_own(kind: type[errors.XgenRayError]) -> None:
    assert kind in STATUS
    reply = reply_for(kind("what, the numbers, what to do"))
    assert 400 <= reply.status < 600
    content = json.loads(reply.encode())
    assert content == {
        "error": {
            "message": "what, the numbers, what to do",
            "type": STATUS[kind][1],
            "param": "model" if kind is errors.ModelNotFound else None,
            "code": kind.code,
        }
    }


def test_a_subclass_from_elsewhere_takes_its_bases_row() -> None:
    class Unheard(errors.PayloadTooLarge):
        pass

    assert reply_for(Unheard("x")).status == 413


@pytest.mark.parametrize(("seconds", "header"), [(0.0, b"1"), (0.2, b"1"), (7.2, b"8"), (30, b"30")])
def test_not_ready_says_when_to_come_back(seconds: float, header: bytes) -> None:
    assert reply_for(errors.NotReady("x", seconds)).headers == ((b"retry-after", header),)


def test_details_are_shown_only_when_asked_for() -> None:
    refused = errors.PlacementRefused("x", ({"backend": "vllm-cuda", "reasons": ["no GPU"]},))
    reply = reply_for(refused)
    assert "details" not in json.loads(reply.encode())["error"]
    detailed = json.loads(reply.encode(with_details=True))["error"]["details"]
    assert detailed == {"candidates": [{"backend": "vllm-cuda", "reasons": ["no GPU"]}]}
    failed = reply_for(errors.EngineFailed("x", "out_of_memory", ("last line",)))
    assert failed.details == {"failure": "out_of_memory", "log_tail": ["last line"]}


def test_any_text_can_be_quoted_back() -> None:
    message = 'a "quote", a \ud800 surrogate and \x00'
    assert json.loads(ErrorReply(400, "t", message).encode())["error"]["message"] == message


def test_an_unforeseen_error_names_the_request_and_nothing_else() -> None:
    assert "req_1" in internal_error("req_1").message
