"""Our own log lines inside Ray: one line an event, into the worker's log file, beside Ray's own.

Messages are written as ``what happened: key=%s key=%s``; a request's has its fields in ``extra``. As
text they read like that. With ``XGEN_RAY_LOG_FORMAT=json`` each line is an object with ``at``, ``level``,
``logger``, ``event`` and the fields by name.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

# The packages whose modules have loggers.
_OURS: Final = ("xgen_ray", "deployments")
_FORMAT: Final = "XGEN_RAY_LOG_FORMAT"
_FIELD: Final = re.compile(r"(\w+)=%[sdr]")
_PLAIN: Final = re.compile(r"[^\s\"=]+")


def log_transitions(environ: Mapping[str, str] = os.environ) -> None:
    """Show INFO and above of ours. Ray sets no handler up for others than itself.

    Every process that Ray starts for us calls it once.
    """
    # In replicas Serve may have put a stream in place of ``sys.stderr`` that passes every line on to its own
    # logger: with Serve's own head before it, so no JSON any more, and held back until there are a thousand.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JSONLines() if environ.get(_FORMAT) == "json" else TextLines())
    for name in _OURS:
        ours = logging.getLogger(name)
        ours.setLevel(logging.INFO)
        if not ours.handlers:
            ours.addHandler(handler)


class TextLines(logging.Formatter):
    """``time level logger: what happened: key=value ...`` in one line; a traceback follows in more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        line = super().formatMessage(record)
        told = [f"{name}={_shown(value)}" for name, value in _extra(record).items() if value is not None]
        return " ".join([line, *told]).replace("\r", "\\r").replace("\n", "\\n")


class JSONLines(logging.Formatter):
    """One JSON object a line, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _read(record)
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            **fields,
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _read(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and its fields, of a message in our form; of another, the whole of it is the event."""
    template, arguments = record.msg, record.args
    if not isinstance(template, str) or not isinstance(arguments, tuple) or not arguments:
        return record.getMessage(), {}
    names = _FIELD.findall(template)
    event, colon, rest = template.partition(": ")
    if not colon or "%" in event or len(names) != len(arguments) or _FIELD.sub("", rest).strip():
        return record.getMessage(), {}
    plain = (str, int, float, bool, type(None))
    values = (value if isinstance(value, plain) else str(value) for value in arguments)
    return event, dict(zip(names, values, strict=True))


def _shown(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
