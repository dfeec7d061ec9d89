"""Where the caches are: rendezvous hashing for sessions, an index of prompt starts for everything else."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

# Where prompts are cut: fine where system prompts end, coarse in long conversations.
_CUTS: Final[tuple[int, ...]] = (0, 512, *range(1024, 8192, 1024), *range(8192, 65537, 4096))
_PARTS: Final = tuple(pairwise(_CUTS))
# The field in which a prompt starts. What comes before it (sampling, ids) may differ from turn to turn.
_PROMPT_FIELDS: Final = (b'"messages"', b'"prompt"', b'"input"')
_FIELD_WITHIN: Final = 16384
# A prefix that many engines have read needs no remembering of them all.
_HOLDERS: Final = 4
_BITS: Final = 2**64 - 1


def seed_of(name: str) -> int:
    """A number for ``name``, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def rendezvous(session: int, seeds: Sequence[int]) -> list[int]:
    """Positions of ``seeds``, the session's favourite first.

    All routers find the same order without talking, and an engine that goes moves only its own sessions.
    """
    ranks = [_mixed(session ^ seed) for seed in seeds]
    return sorted(range(len(seeds)), key=ranks.__getitem__)


def _mixed(number: int) -> int:
    """64 bits in which each bit depends on all of ``number``."""
    product = number * 0x9E3779B97F4A7C15 & _BITS
    return (product ^ product >> 32) * 0xD6E8FEB86659FD93 & _BITS


def blocks_of(body: bytes) -> tuple[int, ...]:
    """A chain of hashes over the start of a request's prompt: equal up to where two prompts are equal.

    Only whole blocks count, and only this process can compare them.
    """
    start, before = 0, _FIELD_WITHIN
    for name in _PROMPT_FIELDS:
        if (at := body.find(name, 0, before)) >= 0:
            start = before = at
    chain: list[int] = []
    last = 0
    size = len(body) - start
    for begin, end in _PARTS:
        if end > size:
            break
        last = hash((last, body[start + begin : start + end]))
        chain.append(last)
    return tuple(chain)


def bytes_in(blocks: int) -> int:
    """How much of a prompt so many blocks are."""
    return _CUTS[blocks]


class PrefixIndex:
    """Remembers which engines have read which prompt starts, the latest ``entries`` of them."""

    __slots__ = ("_entries", "_held", "_life_s")

    def __init__(self, entries: int, life_s: float) -> None:
        self._entries = entries
        self._life_s = life_s
        self._held: OrderedDict[int, dict[str, float]] = OrderedDict()

    def read(self, blocks: Iterable[int], replica_id: str, now: float) -> None:
        """``replica_id`` gets a prompt that starts with ``blocks``."""
        held = self._held
        for block in blocks:
            holders = held.get(block)
            if holders is None:
                held[block] = {replica_id: now}
                continue
            held.move_to_end(block)
            holders.pop(replica_id, None)
            holders[replica_id] = now
            if len(holders) > _HOLDERS:
                del holders[next(iter(holders))]
        while len(held) > self._entries:
            held.popitem(last=False)

    def cached(self, blocks: Sequence[int], now: float) -> dict[str, float]:
        """How many bytes of the prompt each engine is expected to have, those of it that have any.

        The older the memory, the less of it counts: the engine has read other things since.
        """
        found: dict[str, float] = {}
        for count in range(len(blocks), 0, -1):
            holders = self._held.get(blocks[count - 1])
            if holders is None:
                continue
            for replica_id, at in holders.items():
                if replica_id not in found:
                    found[replica_id] = bytes_in(count) * max(0.0, 1.0 - (now - at) / self._life_s)
            if len(found) >= _HOLDERS:
                break
        return found

    def forget(self, replica_id: str) -> None:
        """The engine is gone, and its cache with it."""
        for holders in self._held.values():
            holders.pop(replica_id, None)
