"""Our log lines: one line an event, with its fields, as text and as JSON."""

import json
import logging
import sys

from deployments.logs import JSONLines, TextLines


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("xgen_ray.serving.loop", logging.INFO, __file__, 1, message, arguments, None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


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
