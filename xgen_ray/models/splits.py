"""The names of split GGUF files: ``name-00001-of-00003.gguf``."""

import re
from dataclasses import dataclass

_PATTERN = re.compile(
    r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)$", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class SplitName:
    """One part's name, taken apart. ``stem`` may contain folders; parts count from 1."""

    stem: str
    part: int
    count: int
    suffix: str = ".gguf"

    def sibling(self, part: int) -> str:
        return f"{self.stem}-{part:05d}-of-{self.count:05d}{self.suffix}"

    def siblings(self) -> tuple[str, ...]:
        """The names of all parts, in order."""
        return tuple(self.sibling(part) for part in range(1, self.count + 1))


def parse_split_name(name: str) -> SplitName | None:
    """What part of a split file ``name`` is, or None if it is a file of its own."""
    match = _PATTERN.match(name)
    if match is None:
        return None
    split = SplitName(match["stem"], int(match["part"]), int(match["count"]), match["suffix"])
    return split if 1 <= split.part <= split.count else None


def is_projector(name: str) -> bool:
    """Whether a GGUF's name says that it is a vision or audio projector, not a model of its own."""
    return name.rsplit("/", 1)[-1].lower().startswith("mmproj")
