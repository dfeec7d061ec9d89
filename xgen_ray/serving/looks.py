"""A look over the fleet for one model: its facts, where its files are, every node as a planner sees it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from xgen_ray.errors import ModelNotFound, NotReady, XgenRayError
from xgen_ray.hardware.types import GPUDetectionResult, HostFacts, NodeSnapshot
from xgen_ray.models import ModelFacts, Shelf, parse_source
from xgen_ray.placement import RAM, FleetPlan, NodeView, Outstanding, PlacementPolicy
from xgen_ray.schema import Progress
from xgen_ray.serving.node_state import NodeState, Versions
from xgen_ray.serving.nodes import Nodes, NodesSeen, SilentNode
from xgen_ray.serving.sources import SourceFinder
from xgen_ray.serving.state import Fleet

# A node that has just joined answers once it has tried its engines, which takes seconds.
JOINING_PATIENCE_S: Final = 30.0
LOOK_AGAIN_S: Final = 0.5
OWNERS_START_S: Final = 1.0


class FleetReader:
    """Asks every node's owner at once. A node that does not answer is in the fleet, with why.

    ``versions`` are what engines are started with here: a node with others takes no models.
    """

    def __init__(
        self, nodes: Nodes, sources: SourceFinder, policy: PlacementPolicy, versions: Versions
    ) -> None:
        self._nodes = nodes
        self._sources = sources
        self.policy = policy
        self._versions = versions

    async def seen(self, *, wake: bool = False) -> NodesSeen:
        """Every node; ``wake`` those that rest. Waits a while for the first owner of a cluster that
        has just started.
        """
        until = asyncio.get_running_loop().time() + JOINING_PATIENCE_S
        while True:
            seen = await self._nodes.look(wake=wake)
            if seen.states or asyncio.get_running_loop().time() > until:
                return seen
            await asyncio.sleep(LOOK_AGAIN_S)

    async def rehearse(self, decision: FleetPlan) -> tuple[str, ...]:
        """The first replica's command. Raises what one of the nodes would refuse to start."""
        first = {(one.node_id, one.plan.backend): one for one in reversed(decision.assignments)}
        commands = await asyncio.gather(
            *(self._nodes.rehearse(one.node_id, one.plan) for one in reversed(first.values()))
        )
        return commands[0]

    def against(self, state: NodeState) -> str:
        """Why a node takes no models although it answers; empty if it does."""
        return _difference(state.versions, self._versions)

    async def check(self, model: str) -> None:
        """Raises at once for what can be seen to be wrong: a malformed name, a path that is not allowed, or
        that is on no node. Cheap when the file is here.
        """
        try:
            await asyncio.to_thread(self._sources.check, model)
        except ModelNotFound as error:
            others = await self._nodes.alive()
            answers = await asyncio.gather(*(self._has(node_id, model) for node_id in others))
            # One that rests or is silent is asked again by the look for a place.
            if True in answers or None in answers:
                return
            if len(others) > 1:
                names = ", ".join(sorted(others.values()))
                raise ModelNotFound(f"{error.message} No other node has it ({names}).") from None
            raise

    async def shelves(self) -> Mapping[str, Shelf]:
        """What lies in the model directories of every node, by its name."""
        # Owners that are missing are started; their engines need not have been tried for this.
        await self._nodes.look(OWNERS_START_S)
        alive = await self._nodes.alive()
        answers = await asyncio.gather(*(self._shelf(node_id) for node_id in alive))
        return dict(zip(alive.values(), answers, strict=True))

    async def _shelf(self, node_id: str) -> Shelf:
        try:
            return await self._nodes.shelf(node_id)
        except XgenRayError as error:
            return Shelf((), (f"not looked at yet: {error.message}",))

    async def look(
        self, model: str, on_progress: Callable[[Progress], None] | None = None
    ) -> tuple[ModelFacts, Fleet]:
        """The facts of ``model``, and the fleet for its plan. Fetches no weights.

        Raises ModelNotFound for a path that is on no node, NotReady when no node answers, and what the hub
        answers for a model that is to come from there.
        """
        if on_progress is not None:
            on_progress(Progress(stage="resolve", message=f"looking for {model}"))
        seen = await self.seen(wake=True)
        having = await self._having(model, seen)
        facts = await self._facts(model, seen, having)
        on_hub = parse_source(model).path is None
        views = [self._view(state, having.get(state.node.node_id), can_fetch=on_hub) for state in seen.states]
        silent = frozenset(one.node.node_id for one in seen.silent)
        return facts, Fleet((*views, *map(_silent_view, seen.silent)), self.policy, silent)

    async def _having(self, model: str, seen: NodesSeen) -> Mapping[str, bool]:
        """On which nodes the files are, as far as nodes answer. Raises what all of them refuse with."""
        node_ids = [state.node.node_id for state in seen.states]
        answers = dict(
            zip(node_ids, await asyncio.gather(*(self._has(one, model) for one in node_ids)), strict=True)
        )
        refusals = [answer for answer in answers.values() if isinstance(answer, XgenRayError)]
        if refusals and len(refusals) == len(answers):
            raise refusals[0]
        return {node_id: answer is True for node_id, answer in answers.items() if answer is not None}

    async def _has(self, node_id: str, model: str) -> bool | XgenRayError | None:
        try:
            return await self._nodes.has_source(node_id, model)
        except NotReady:
            return None
        except XgenRayError as error:
            return error

    async def _facts(self, model: str, seen: NodesSeen, having: Mapping[str, bool]) -> ModelFacts:
        refused: XgenRayError | None = None
        for node_id in [node_id for node_id, has in having.items() if has]:
            try:
                return await self._nodes.facts(node_id, model)
            except XgenRayError as error:
                refused = error
        if refused is not None:
            raise refused
        if not seen.states:
            reasons = "; ".join(f"{silent.node.name}: {silent.reason}" for silent in seen.silent)
            raise NotReady(f"no node of the cluster answers ({reasons or 'there is none'})")
        if parse_source(model).path is not None:
            asked = ", ".join(sorted(state.node.name for state in seen.states))
            raise ModelNotFound(f"no node has {model} (asked: {asked})")
        return await asyncio.to_thread(self._sources.remote_facts, model)

    def _view(self, state: NodeState, has_files: bool | None, *, can_fetch: bool) -> NodeView:
        reason = self.against(state)
        return NodeView(
            node_id=state.node.node_id,
            name=state.node.name,
            snapshot=state.snapshot,
            statuses=state.statuses,
            usage=state.usage,
            outstanding=state.outstanding,
            taken=state.taken,
            leased=tuple(
                claim.device for lease in state.leases for claim in lease.claims if claim.device != RAM
            ),
            has_files=has_files,
            can_fetch=can_fetch,
            tagged=state.node.tagged,
            node_type=state.node.node_type,
            schedulable=not reason,
            reason=reason,
        )


def _difference(theirs: Versions, ours: Versions) -> str:
    """Why a node of other versions takes no models; empty if it is alike."""
    if theirs.xgen_ray != ours.xgen_ray:
        return f"it runs xgen-ray {theirs.xgen_ray}, the head {ours.xgen_ray}: install the same there"
    return ""


def _silent_view(silent: SilentNode) -> NodeView:
    """Nothing is known of it but its name and why nobody else knows more."""
    host = HostFacts(
        hostname=silent.node.name,
        os="",
        machine="",
        cpu_model=None,
        cpu_count=0,
        cpu_flags=frozenset(),
        memory_total_bytes=0,
        memory_available_bytes=0,
        memlock_limit_bytes=None,
    )
    detection = GPUDetectionResult(False, (), None, "no answer", ())
    return NodeView(
        node_id=silent.node.node_id,
        name=silent.node.name,
        snapshot=NodeSnapshot(host, detection, 0.0),
        statuses=(),
        usage=None,
        outstanding=Outstanding(),
        taken=frozenset(),
        has_files=None,
        can_fetch=False,
        tagged=silent.node.tagged,
        schedulable=False,
        reason=silent.reason,
    )
