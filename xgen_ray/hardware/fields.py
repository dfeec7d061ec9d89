"""Asking a vendor library about one card, field by field, so that what fails is lost alone."""

from collections.abc import Callable
from typing import Any


class CardReader:
    """Reads the facts of one card. A field that fails reads as None and leaves a note.

    ``library`` is the vendor's Python module, ``handle`` its handle of the card. ``errors`` are the
    library's exceptions and ``explain`` puts one into words. A function that this version of the module
    does not have, or an answer that the module itself trips over, counts as a field that fails.
    """

    def __init__(
        self,
        library: Any,
        handle: Any,
        errors: tuple[type[Exception], ...],
        explain: Callable[[Exception], str],
    ) -> None:
        self.library = library
        self.handle = handle
        self._errors: tuple[type[Exception], ...] = (*errors, AttributeError, ValueError, KeyError, TypeError)
        self._explain = explain
        self._failures: dict[str, str] = {}

    def ask(self, field: str, function: str, *args: object, optional: bool = False) -> Any:
        """What the library's ``function`` says of the card, or None.

        An ``optional`` field leaves no note: many cards lack it by nature.
        """
        try:
            return getattr(self.library, function)(self.handle, *args)
        except self._errors as error:
            if not optional:
                self._failures[field] = self._explain(error)
            return None

    def failed(self, field: str) -> str | None:
        """Why ``field`` could not be read, if it could not."""
        return self._failures.get(field)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(f"{field}: {why}" for field, why in self._failures.items())


def left_out(lost: list[str], total: int) -> str | None:
    """The reason of a report that has to do without some of ``total`` cards, or None when it has all."""
    return f"{len(lost)} of {total} GPUs left out: {'; '.join(lost)}" if lost else None
