"""What a child has said: the last lines, safe to show."""

import re
import threading
from collections import deque
from collections.abc import Iterable, Sequence

# CSI ("colour"), OSC ("title") and two-character escape sequences of terminals.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
# Everything unprintable but the tab, also the separators that browsers and terminals take for newlines.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_HIDDEN = "***"


class LogRing:
    """Keeps the last ``max_lines`` lines, numbered from 0 since the first one ever.

    A line is stored without control characters and terminal escapes, with every secret blanked, and
    cut at ``max_line_chars`` with a mark that tells how much is missing. One thread appends, any
    number may read.
    """

    def __init__(
        self, max_lines: int = 4000, max_line_chars: int = 4096, secrets: Sequence[str] = ()
    ) -> None:
        if max_lines < 1 or max_line_chars < 1:
            message = f"a log ring needs room: max_lines={max_lines}, max_line_chars={max_line_chars}"
            raise ValueError(message)
        self.max_line_chars = max_line_chars
        self._lines: deque[str] = deque(maxlen=max_lines)
        self._total = 0
        self._lock = threading.Lock()
        self._secrets: tuple[str, ...] = ()
        self._secret_pattern: re.Pattern[str] | None = None
        self.hide(secrets)

    @property
    def total(self) -> int:
        """How many lines there have ever been: the number of the next one."""
        with self._lock:
            return self._total

    def hide(self, secrets: Iterable[str]) -> None:
        """Blank these as well, from now on and in the lines already held."""
        # A secret of several lines (a key file) arrives here line by line.
        parts = {_clean(part) for secret in secrets for part in secret.splitlines()}
        parts = {part for part in parts if part.strip()}.union(self._secrets)
        with self._lock:
            # Longest first, so that a secret inside another does not leave the rest of it behind.
            self._secrets = tuple(sorted(parts, key=lambda part: (-len(part), part)))
            if self._secrets:
                self._secret_pattern = re.compile("|".join(map(re.escape, self._secrets)))
            held = [self._blank(line) for line in self._lines]
            self._lines.clear()
            self._lines.extend(held)

    def append(self, line: str, *, more_chars: int = 0) -> None:
        """Add one line. It may hold anything. ``more_chars`` tells of an end that the caller cut off."""
        # Beyond this nothing of a line can be shown: what is never looked at costs no time.
        looked_at = self.max_line_chars * 4
        text = self._blank(_clean(line[:looked_at]))
        missing = max(len(line) - looked_at, 0) + more_chars
        if missing:
            text = self._without_started_secret(text)
        missing += max(len(text) - self.max_line_chars, 0)
        if missing:
            text = f"{text[: self.max_line_chars]} ... [{missing} characters cut]"
        with self._lock:
            self._lines.append(text)
            self._total += 1

    def read(self, after: int = 0, limit: int = 1000) -> tuple[tuple[str, ...], int]:
        """Up to ``limit`` lines from number ``after`` on, and the number to ask for next.

        See ``excerpt``.
        """
        with self._lock:
            held, total = tuple(self._lines), self._total
        return excerpt(held, total, after, limit)

    def tail(self, count: int = 40) -> tuple[str, ...]:
        """The last ``count`` lines."""
        with self._lock:
            return tuple(self._lines)[max(len(self._lines) - max(count, 0), 0) :]

    def _blank(self, text: str) -> str:
        return text if self._secret_pattern is None else self._secret_pattern.sub(_HIDDEN, text)

    def _without_started_secret(self, text: str) -> str:
        """Without the beginning of a secret that the cut went through."""
        for secret in self._secrets:
            for length in range(min(len(secret) - 1, len(text)), 0, -1):
                if text.endswith(secret[:length]):
                    return text[:-length]
        return text


def excerpt(held: Sequence[str], total: int, after: int, limit: int) -> tuple[tuple[str, ...], int]:
    """Up to ``limit`` lines from number ``after`` on, and the number to ask for next, of a log of ``total``
    lines of which the last are ``held``.

    Lines that are no longer held are told by one extra line in their place. An ``after`` beyond the end
    gives nothing and puts the reader at the end: who may have read another log must say so.
    """
    first = total - len(held)
    start = min(max(after, first), total)
    end = min(start + max(limit, 0), total)
    lines = tuple(held[start - first : end - first])
    missed = first - max(after, 0)
    if missed > 0 and lines:
        return (f"... {missed} lines dropped", *lines), end
    return lines, end


def _clean(line: str) -> str:
    if line.isprintable():
        return line
    return _CONTROLS.sub("", _ESCAPES.sub("", line.replace("\t", "    ")))
