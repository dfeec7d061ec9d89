"""What starting a plan's engine would be refused for, found out on its node without starting it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Engine, Plan

# Both are made afresh for each start.
_PORT: Final = 0
_KEY: Final = "KEY"


async def rehearse(plan: Plan, *, host: str, base_env: Mapping[str, str], cache_dir: Path) -> tuple[str, ...]:
    """The command that would run ``plan`` here, but for its port and key; empty for an engine without one.

    Raises what a start would be refused with before it begins: ``UnknownOption`` where this build cannot do
    what the plan or its ``extra_args`` need, ``InvalidRequest`` for what nobody may ask for, ``EngineFailed``
    when the build does not answer.
    """
    if BACKENDS[plan.backend].engine is not Engine.LLAMA_SERVER:
        return ()
    from xgen_ray.backends.llama_server import LlamaServerLauncher

    launcher = LlamaServerLauncher(plan, host=host, base_env=base_env, cache_dir=cache_dir, alias=None)
    return (await launcher(_PORT, _KEY)).spec.argv
