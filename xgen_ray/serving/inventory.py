"""What this node has and what can start on it, read when it is asked for."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from xgen_ray.backends import discover
from xgen_ray.backends.rehearsal import rehearse
from xgen_ray.hardware import (
    GPUProcesses,
    NodeSnapshot,
    NodeUsage,
    detect_in_child,
    take_processes,
    take_usage,
)
from xgen_ray.placement import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.types import Backend, BackendStatus, Plan
from xgen_ray.serving.state import Inventory

# Cards do not come and go by the minute, and a look takes seconds; usage is read afresh every time.
SNAPSHOT_AGE_S = 600.0
LOOPBACK = "127.0.0.1"


class InventoryReader:
    """Hardware and engines of the node that it runs on. Many may ask at once: one look serves them all.

    ``commands`` name engines that are not to be searched for; ``env`` is the environment that children
    are given.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        commands: Mapping[Backend, tuple[str, ...]],
        cache_dir: Path,
        policy: PlacementPolicy = DEFAULT_POLICY,
    ) -> None:
        self._env = env
        self._commands = commands
        self._cache_dir = cache_dir
        self._policy = policy
        self._lock = asyncio.Lock()
        self._known: tuple[NodeSnapshot, tuple[BackendStatus, ...]] | None = None
        self._taken_at = 0.0

    async def read(self) -> Inventory:
        snapshot, statuses = await self.hardware()
        return Inventory(snapshot, await self.usage(), statuses, self._policy)

    async def hardware(self) -> tuple[NodeSnapshot, tuple[BackendStatus, ...]]:
        """What the node has, and which engines can start on it. Costs seconds at first, then nothing."""
        async with self._lock:
            if self._known is None or time.monotonic() - self._taken_at > SNAPSHOT_AGE_S:
                self._known = await self._look()
                self._taken_at = time.monotonic()
            return self._known

    async def usage(self) -> NodeUsage:
        """What the node is doing now. Costs a fraction of a second each time."""
        snapshot, _ = await self.hardware()
        return await asyncio.to_thread(take_usage, snapshot.detection, env=self._env)

    async def processes(self) -> GPUProcesses:
        """Who has how much of the node's GPUs now. Costs as much as usage."""
        snapshot, _ = await self.hardware()
        return await asyncio.to_thread(take_processes, snapshot.detection, env=self._env)

    async def rehearse(self, plan: Plan) -> tuple[str, ...]:
        """The command that would start ``plan`` here. Raises what the start would be refused with."""
        return await rehearse(plan, host=LOOPBACK, base_env=self._env, cache_dir=self._cache_dir)

    async def _look(self) -> tuple[NodeSnapshot, tuple[BackendStatus, ...]]:
        snapshot = await asyncio.to_thread(detect_in_child, env=self._env)
        found = await discover(
            path=self._env.get("PATH", ""),
            commands=self._commands,
            cache_dir=self._cache_dir,
            env=self._env,
        )
        return snapshot, found
