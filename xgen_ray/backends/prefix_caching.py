"""Whether an engine keeps the beginnings of prompts that it has read. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from xgen_ray.backends.flags import canonical
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Backend, Engine

# The words that turn it on and off, among those that users may add; without them it is on. An engine that
# is not here takes none.
_SWITCHES: Final[Mapping[Engine, Mapping[str, bool]]] = MappingProxyType(
    {
        Engine.VLLM: {"--enable-prefix-caching": True, "--no-enable-prefix-caching": False},
        Engine.LLAMA_SERVER: {"--cache-prompt": True, "--no-cache-prompt": False},
    }
)


def caches_prefixes(backend: Backend, extra_args: Sequence[str]) -> bool:
    """Whether an engine that is started with ``extra_args`` reads a beginning that it knows faster."""
    switches = _SWITCHES.get(BACKENDS[backend].engine, {})
    # As with the engines themselves, the last word counts.
    words = (canonical(word) for word in reversed(extra_args))
    return next((switches[word] for word in words if word in switches), True)
