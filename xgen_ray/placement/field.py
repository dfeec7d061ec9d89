"""The nodes in the course of one decision: what has been placed on each, and which is best next."""

from collections import Counter
from collections.abc import Collection, Sequence

from xgen_ray.placement.scale import Scale
from xgen_ray.placement.score import Score
from xgen_ray.placement.screen import Promise, Screen, filtered, screen, size_of
from xgen_ray.placement.survey import Kind, kind_of
from xgen_ray.placement.types import Plan
from xgen_ray.placement.verdicts import NodeVerdict, verdict_of
from xgen_ray.placement.views import NodeView, with_plan, without_models


class Field:
    """Views that change as replicas are placed and idle models leave.

    Weighing is the dear part, so nodes are weighed by promise, ``most`` at a time, until one batch has a
    node that fits. A fleet of at most that many nodes is always weighed as a whole.
    """

    def __init__(
        self, scale: Scale, views: Sequence[NodeView], *, on: Collection[str] | None, most: int
    ) -> None:
        self._scale = scale
        self._most = most
        self._better = (f"not weighed: {most} others looked better",)
        self._out: dict[str, tuple[str, ...]] = {}
        self._promises: dict[str, Promise] = {}
        self._screen: Screen | None = None
        self._ranking: tuple[NodeView, ...] | None = None
        self._full = False
        self.placed: Counter[str] = Counter()
        self.views = {
            view.node_id: view for view in sorted(views, key=lambda view: (view.name, view.node_id))
        }
        for view in self.views.values():
            kind = kind_of(view.snapshot, view.statuses, scale.policy)
            reasons = filtered(view, scale.facts, kind, on)
            if reasons:
                self._out[view.node_id] = reasons
            else:
                self._promises[view.node_id] = self._promise(view, kind)

    def best(self) -> tuple[NodeView, Score, NodeVerdict | None] | None:
        """The node for the next replica with its score, and the runner-up; None when there is no room."""
        # Known from an earlier question, and nothing has changed since.
        hopeful = () if self._full else self._by_promise()
        for start in range(0, len(hopeful), self._most):
            fitting = []
            for view in hopeful[start : start + self._most]:
                answer = self._scale.weigh(view, self.placed[view.node_id])
                if answer.score is not None:
                    fitting.append((answer.score, view.name, view.node_id))
            if fitting:
                fitting.sort()
                scored, _, node_id = fitting[0]
                second = self.verdict(self.views[fitting[1][2]]) if len(fitting) > 1 else None
                return self.views[node_id], scored, second
        self._full = True
        return None

    def place(self, view: NodeView, plan: Plan) -> None:
        self.placed[view.node_id] += 1
        self.replace(with_plan(view, plan))

    def unload(self, names: Collection[str]) -> None:
        """Take idle models off every node that has them."""
        for view in list(self.views.values()):
            idle = [item for item in view.idle_models if item.name in names]
            if idle:
                self.replace(without_models(view, idle))

    def replace(self, view: NodeView) -> None:
        self.views[view.node_id] = view
        self._ranking = None
        self._full = False
        if view.node_id not in self._out:
            self._promises[view.node_id] = self._promise(view)

    def with_idle_models(self) -> list[NodeView]:
        """The nodes in question that something could be unloaded from, those that would gain most first."""
        idle = [view for view in self.views.values() if view.idle_models and view.node_id not in self._out]
        gains = {view.node_id: self._promise(without_models(view, view.idle_models)) for view in idle}
        return sorted(
            (view for view in idle if not gains[view.node_id].hopeless),
            key=lambda view: (gains[view.node_id], view.name, view.node_id),
        )

    def verdicts(self) -> tuple[NodeVerdict, ...]:
        """One per node; those that no batch came to are not weighed for this."""
        weighed = {view.node_id for view in self._by_promise()[: self._most]}
        hopeless = [node_id for node_id, item in self._promises.items() if item.hopeless]
        weighed |= set(hopeless[: max(0, self._most - len(weighed))])
        return tuple(
            self.verdict(view)
            if view.node_id in weighed or view.node_id in self._out
            else self._unweighed(view)
            for view in self.views.values()
        )

    def verdict(self, view: NodeView) -> NodeVerdict:
        if view.node_id in self._out:
            return NodeVerdict(view.node_id, view.name, False, self._out[view.node_id])
        return verdict_of(view, self._scale.weigh(view, self.placed[view.node_id]))

    def _by_promise(self) -> tuple[NodeView, ...]:
        """The nodes worth weighing, best first; all of a small fleet, so that each has its reasons."""
        if self._ranking is not None:
            return self._ranking
        few = len(self._promises) <= self._most
        worth = [node_id for node_id, item in self._promises.items() if few or not item.hopeless]
        # Of equals the first by name, which is the order that they are in.
        worth.sort(key=self._promises.__getitem__)
        self._ranking = tuple(self.views[node_id] for node_id in worth)
        return self._ranking

    def _promise(self, view: NodeView, kind: Kind | None = None) -> Promise:
        scale = self._scale
        if self._screen is None:
            learned = bool(scale.observations)
            host = view.snapshot.host
            size = size_of(scale.facts, scale.options, scale.policy, host, learned=learned)
            self._screen = screen(scale.facts, scale.options, size, spread=scale.spread)
        return self._screen.promise(view, kind or kind_of(view.snapshot, view.statuses, scale.policy))

    def _unweighed(self, view: NodeView) -> NodeVerdict:
        if self._screen is not None and self._promises[view.node_id].hopeless:
            return NodeVerdict(view.node_id, view.name, False, (self._screen.too_large(view),))
        return NodeVerdict(view.node_id, view.name, None, self._better)
