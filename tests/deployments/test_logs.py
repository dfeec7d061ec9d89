"""Our log lines: one line an event, with its fields, as text and as JSON."""

import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from deployments.logs import JSONLines, TextLines, log_transitions


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("xgen_ray.serving.loop", logging.INFO, __file__, 1, message, arguments, None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def ours() -> Iterator[tuple[logging.Logger, ...]]:
    """The loggers of our packages, as they were before afterwards."""
    loggers = (logging.getLogger("xgen_ray"), logging.getLogger("deployments"))
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield loggers
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_both_packages_are_shown_past_a_stream_that_serve_has_put_in_place(
    ours: tuple[logging.Logger, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, replaced = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", kept)
    monkeypatch.setattr(sys, "stderr", replaced)
    for logger in ours:
        logger.handlers.clear()
    for _ in range(2):
        log_transitions({"XGEN_RAY_LOG_FORMAT": "json"})
    logging.getLogger("xgen_ray.api.gateway").info("request", extra={"fields": {"request_id": "r-7"}})
    logging.getLogger("deployments.router").warning("control does not answer: error=%s", "TimeoutError")
    lines = [json.loads(line) for line in kept.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["request", "control does not answer"]
    assert lines[1]["error"] == "TimeoutError"
    assert not replaced.getvalue()


def test_fields_of_a_message_become_fields_of_the_object() -> None:
    line = json.loads(JSONLines().format(record("lease refused: app=%s free=%d", "a b", 7)))
    assert (line["event"], line["app"], line["free"]) == ("lease refused", "a b", 7)
    assert (line["level"], line["logger"]) == ("info", "xgen_ray.serving.loop")
    assert line["at"].endswith("+00:00")


def test_a_message_in_another_form_is_told_whole() -> None:
    line = json.loads(JSONLines().format(record("control did not hear of %s: %s", "a", "TimeoutError")))
    assert line["event"] == "control did not hear of a: TimeoutError"


def test_a_request_has_its_fields_in_both_forms() -> None:
    told = {"request_id": "r-1", "model": None, "path": "/v1/chat/completions", "outcome": "client left"}
    line = json.loads(JSONLines().format(record("request", fields=told)))
    assert told.items() <= line.items()
    text = TextLines().format(record("request", fields=told))
    assert text.endswith('loop: request request_id=r-1 path=/v1/chat/completions outcome="client left"')


def test_one_event_is_one_line_whatever_somebody_sends() -> None:
    nasty = record("model changed: model=%s reason=%s", "a", "first\nERROR forged: x=1")
    assert "\n" not in TextLines().format(nasty)
    assert "\n" not in JSONLines().format(nasty)


def test_a_traceback_stays_with_its_event() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record("planning failed: model=%s", "a")
        made.exc_info = sys.exc_info()
    line = json.loads(JSONLines().format(made))
    assert line["event"] == "planning failed"
    assert line["exception"].endswith("ValueError: why")
    assert TextLines().format(made).splitlines()[-1] == "ValueError: why"
