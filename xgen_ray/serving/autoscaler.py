"""Ray's autoscaler, as far as others may speak to it: so many nodes of which type there must be."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Final

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from xgen_ray.placement import NodeType
from xgen_ray.serving.node_state import GPU_TYPE_LABEL

logger = logging.getLogger(__name__)

# What was said is kept by Ray. A new head process knows nothing of it.
REPEAT_S: Final = 30.0


class Autoscaler:
    """Says what is wanted, and says it again: the last word holds. Without ``types`` it is left alone."""

    def __init__(self, types: Mapping[str, NodeType]) -> None:
        self._types = types
        self._counts: Mapping[str, int] | None = None
        self._said_at = float("-inf")
        self._speaking = asyncio.Lock()

    async def ask(self, counts: Mapping[str, int]) -> None:
        """So many nodes of each type from now on, and of others as many as are in use."""
        self._counts = counts
        self._said_at = float("-inf")
        await self.repeat()

    async def repeat(self) -> None:
        """Says the last word again, if it was not heard or some time has passed."""
        async with self._speaking:
            counts = self._counts
            if counts is None or time.monotonic() - self._said_at < REPEAT_S:
                return
            bundles, selectors = demand_of(counts, self._types)
            try:
                await asyncio.to_thread(request_resources, bundles=bundles, bundle_label_selectors=selectors)
            except (RayError, RuntimeError, OSError) as error:
                logger.warning("the autoscaler was not told: wanted=%s error=%r", dict(counts), error)
                return
            if self._said_at == float("-inf"):
                logger.info("the autoscaler was told: wanted=%s", dict(counts))
            if counts is self._counts:
                self._said_at = time.monotonic()


def demand_of(
    counts: Mapping[str, int], types: Mapping[str, NodeType]
) -> tuple[list[dict[str, float]], list[dict[str, str]]]:
    """A bundle for each node, which takes it whole, and the labels that the node must have."""
    kinds = [types[name] for name, count in sorted(counts.items()) for _ in range(count)]
    return [dict(kind.bundle) for kind in kinds], [_telling(kind, types.values()) for kind in kinds]


def _telling(kind: NodeType, types: Iterable[NodeType]) -> dict[str, str]:
    """The labels that tell the type from others with the same resources, and what its GPUs are.

    No more than those: a node that has come with another label than its type declares does not count, and
    Ray would start one after the other.
    """
    alike = [other for other in types if other != kind and _holds(other.bundle, kind.bundle)]
    return {
        name: value
        for name, value in kind.labels.items()
        if name == GPU_TYPE_LABEL or any(other.labels.get(name) != value for other in alike)
    }


def _holds(bundle: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(bundle.get(name, 0) >= size for name, size in other.items())
