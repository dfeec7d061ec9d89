"""Engines: which ones a node has, how each is commanded, and one contract to run any of them.

See README.md beside this file. What is exported is imported on first use: two modules here are programs
of their own (``bundled_llama_server``, ``llama_cpp_trial``), started often, that need nothing of the rest.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xgen_ray.backends.discovery import discover
    from xgen_ray.backends.engine import (
        EngineAdapter,
        EngineAddress,
        EngineLoad,
        EngineStatus,
        create_adapter,
    )

__all__ = ["EngineAdapter", "EngineAddress", "EngineLoad", "EngineStatus", "create_adapter", "discover"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'discovery' if name == 'discover' else 'engine'}"), name)
