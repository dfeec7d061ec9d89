"""What a build of llama-server understands, and how to say in its words what is meant.

``parse_help`` reads a build's own ``--help``; ``express`` picks, from a table of old and new spellings,
the one that this build knows. Pure: asking the binary is ``probe``'s work.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from xgen_ray.errors import UnknownOption

_NAME = re.compile(r"(--?[A-Za-z][\w.-]*)(?:,\s*|(?=\s|$))")
_ENV = re.compile(r"\(env: (\w+)\)")
_REMOVED = "the argument has been removed"


@dataclass(frozen=True, slots=True)
class KnownFlag:
    """One entry of ``--help``. ``value`` is how it names what follows (``N``, ``{none,layer}``), None if
    nothing does. ``env`` is the variable that does the same. ``text`` is its description, on one line.
    """

    names: tuple[str, ...]
    value: str | None
    text: str
    env: str | None = None

    @property
    def arity(self) -> int:
        """How many arguments follow the flag."""
        return 0 if self.value is None else len(self.value.split()) if self.value.isupper() else 1

    def accepts(self, value: str) -> bool:
        """Whether the values that ``--help`` lists, if it lists any, have this one."""
        if self.value is None:
            return False
        listed = re.fullmatch(r"[\[{<](.*)[\]}>]", self.value)
        choices = re.split(r"[|,]", listed[1]) if listed else []
        return (
            not choices or not all(re.fullmatch(r"[\w+-]+", choice) for choice in choices) or value in choices
        )


@dataclass(frozen=True, slots=True)
class KnownFlags:
    """Everything a build knows, by every name it has for it."""

    by_name: Mapping[str, KnownFlag]

    def find(self, name: str) -> KnownFlag | None:
        return self.by_name.get(canonical(name))


def canonical(name: str) -> str:
    """The name as llama.cpp compares it: it takes ``--ctx_size`` for ``--ctx-size``."""
    return name.replace("_", "-") if name.startswith("--") else name


def parse_help(text: str) -> KnownFlags:
    """Read llama.cpp's ``--help``. Entries that only say that they were removed do not count."""
    entries: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if re.match(r"--?[A-Za-z]", line):
            entries.append((line, []))
        elif line.startswith(" ") and entries:
            entries[-1][1].append(line.strip())
    by_name: dict[str, KnownFlag] = {}
    for signature, description in entries:
        flag = _entry(signature, description)
        if flag is not None:
            for name in flag.names:
                by_name.setdefault(canonical(name), flag)
    return KnownFlags(MappingProxyType(by_name))


def _entry(line: str, description: list[str]) -> KnownFlag | None:
    names = []
    at = 0
    while found := _NAME.match(line, at):
        names.append(found[1])
        at = found.end()
        if not found[0].rstrip(" ").endswith(","):
            break
    # What follows one blank is the value's name; the description stands further right.
    rest = re.match(r" (?=\S)(.*?)(?:\s{2,}(.*))?$", line[at:])
    value, first = (rest[1], rest[2]) if rest else (None, line[at:].strip())
    text = " ".join(part for part in (first, *description) if part)
    if not names or text.startswith(_REMOVED):
        return None
    env = _ENV.search(text)
    return KnownFlag(tuple(names), value, text, env[1] if env else None)


class Absent(StrEnum):
    """What it means when a build has no word for something.

    SAME: such builds do it anyway. NOTE: worth telling, no reason to fail. REFUSE: it cannot be done.
    """

    SAME = "same"
    NOTE = "note"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Meaning:
    """``spellings``, best first: a flag and, where it takes one, a value. ``{}`` is the caller's value."""

    spellings: tuple[tuple[str, ...], ...]
    absent: Absent


def _meaning(absent: Absent, *spellings: str) -> Meaning:
    return Meaning(tuple(tuple(spelling.split(" ")) for spelling in spellings), absent)


# Everything that is ever said to a llama-server, with the spellings of the builds in use.
MEANINGS: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        "model": _meaning(Absent.REFUSE, "--model {}", "-m {}"),
        "alias": _meaning(Absent.SAME, "--alias {}"),
        "host": _meaning(Absent.REFUSE, "--host {}"),
        "port": _meaning(Absent.REFUSE, "--port {}"),
        "api_key": _meaning(Absent.REFUSE, "--api-key {}"),
        "context": _meaning(Absent.REFUSE, "--ctx-size {}"),
        "slots": _meaning(Absent.REFUSE, "--parallel {}"),
        # Each slot keeps its own share, so one long request cannot starve the others.
        "separate_slots": _meaning(Absent.SAME, "--no-kv-unified"),
        "batch": _meaning(Absent.REFUSE, "--batch-size {}"),
        "ubatch": _meaning(Absent.REFUSE, "--ubatch-size {}"),
        "threads": _meaning(Absent.REFUSE, "--threads {}"),
        "threads_batch": _meaning(Absent.SAME, "--threads-batch {}"),
        "gpu_layers": _meaning(Absent.REFUSE, "--n-gpu-layers {}", "--gpu-layers {}"),
        "device": _meaning(Absent.REFUSE, "--device {}"),
        # A build that cannot name devices has them hidden by the visibility variables all the same.
        "no_device": _meaning(Absent.SAME, "--device none"),
        "split_mode": _meaning(Absent.REFUSE, "--split-mode {}"),
        "tensor_split": _meaning(Absent.NOTE, "--tensor-split {}"),
        "main_gpu": _meaning(Absent.REFUSE, "--main-gpu {}"),
        "flash_attention_on": _meaning(Absent.NOTE, "--flash-attn on", "--flash-attn"),
        "flash_attention_off": _meaning(Absent.SAME, "--flash-attn off"),
        "fit_on": _meaning(Absent.NOTE, "--fit on"),
        "fit_off": _meaning(Absent.SAME, "--fit off"),
        "memory_lock": _meaning(Absent.NOTE, "--load-mode mlock", "--mlock"),
        "kv_cache_keys": _meaning(Absent.REFUSE, "--cache-type-k {}"),
        "kv_cache_values": _meaning(Absent.REFUSE, "--cache-type-v {}"),
        # Builds before this flag had no such cache.
        "prompt_cache": _meaning(Absent.SAME, "--cache-ram {}"),
        "continuous_batching": _meaning(Absent.SAME, "--cont-batching"),
        "metrics": _meaning(Absent.NOTE, "--metrics"),
        "slot_report": _meaning(Absent.SAME, "--slots"),
        "jinja": _meaning(Absent.SAME, "--jinja"),
        "chat_template": _meaning(Absent.REFUSE, "--chat-template {}"),
        "no_page": _meaning(Absent.SAME, "--no-ui", "--no-webui"),
        "embed": _meaning(Absent.REFUSE, "--embeddings", "--embedding"),
        "rerank": _meaning(Absent.REFUSE, "--reranking", "--rerank"),
        "pooling": _meaning(Absent.REFUSE, "--pooling {}"),
    }
)


@dataclass(frozen=True, slots=True)
class Expressed:
    """Arguments that say it in a build's words, and a note if it has none."""

    argv: tuple[str, ...]
    note: str | None = None


def express(
    known: KnownFlags,
    meaning: str,
    value: str | None = None,
    *,
    table: Mapping[str, Meaning] = MEANINGS,
    program: str = "llama-server",
) -> Expressed:
    """Say ``meaning`` to this build. Raises ``UnknownOption`` when it must be said and cannot be.

    ``table`` has the spellings of ``program``.
    """
    row = table[meaning]
    for flag, *template in row.spellings:
        words = [value if word == "{}" and value is not None else word for word in template]
        found = known.find(flag)
        if found is None or found.arity != len(words):
            continue
        if all(found.accepts(word) for word in words):
            return Expressed((flag, *words))
    if row.absent is Absent.SAME:
        return Expressed(())
    # Names alone: a value may be a secret.
    wanted = " or ".join(spelling[0] for spelling in row.spellings)
    if row.absent is Absent.NOTE:
        return Expressed((), f"this build of {program} has no {wanted}: left out")
    raise UnknownOption(
        f"{meaning} needs {wanted}, which this build of {program} lacks or takes other values for; "
        "install a newer build",
        meaning,
    )
