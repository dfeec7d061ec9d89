"""What passes in a stream of events that began with 200: an engine's error when its worker has died on the
way, and the event that is the last. Pure.
"""

import json
from typing import Final

# At the beginning of a line; in a model's own words a line break is written ``\n``, so nothing else is there.
_MARKS: Final = (b'\ndata: {"error"', b'\ndata:{"error"', b"\nevent: error", b"\nevent:error")
_LAST: Final = b"\ndata: [DONE]"
_KEPT: Final = max(*map(len, _MARKS), len(_LAST + b"\r\n\r\n"))
_CLIENTS_FAULT: Final = range(400, 500)


class EventStream:
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

    @property
    def ended(self) -> bool:
        """Whether the last event has passed. OpenAI's clients hang up then: they do not wait for the end of
        the body (``openai._streaming``).
        """
        return self._end.rstrip(b"\r\n").endswith(_LAST)


def _at_fault(text: bytes, at: int) -> bool:
    """Whether the engine is to blame for the event at ``at``. What is cut off does not say: then it is."""
    line = text[at + 1 :].partition(b"\n")[0]
    try:
        error = json.loads(line.removeprefix(b"data:"))["error"]
        return int(error["code"]) not in _CLIENTS_FAULT
    except (ValueError, LookupError, TypeError):
        return True
