"""Errors inside a stream that began with 200: what an engine says when its worker dies on the way. Pure."""

import json
from typing import Final

# At the beginning of a line; in a model's own words a line break is written ``\n``, so nothing else is there.
_MARKS: Final = (b'\ndata: {"error"', b'\ndata:{"error"', b"\nevent: error", b"\nevent:error")
_KEPT: Final = max(map(len, _MARKS)) - 1
_CLIENTS_FAULT: Final = range(400, 500)


class StreamErrors:
    """Reads a stream of events as its pieces pass, wherever they are cut."""

    __slots__ = ("_end",)

    def __init__(self) -> None:
        self._end = b"\n"

    def feed(self, piece: bytes) -> bool:
        """Whether ``piece`` has, or completes the beginning of, an error that is not the request's own."""
        text = self._end + piece
        self._end = text[-_KEPT:]
        if b"error" not in text:
            return False
        return any(_at_fault(text, text.find(mark)) for mark in _MARKS if mark in text)


def _at_fault(text: bytes, at: int) -> bool:
    """Whether the engine is to blame for the event at ``at``. What is cut off does not say: then it is."""
    line = text[at + 1 :].partition(b"\n")[0]
    try:
        error = json.loads(line.removeprefix(b"data:"))["error"]
        return int(error["code"]) not in _CLIENTS_FAULT
    except (ValueError, LookupError, TypeError):
        return True
