"""One model weighed on one node after another, each kind of node once."""

from dataclasses import dataclass, field, replace

from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.choose import plan
from xgen_ray.placement.claims import RAM, gpu_key
from xgen_ray.placement.estimates import Observation
from xgen_ray.placement.exclusions import Exclusion, exclusions_on
from xgen_ray.placement.policy import PlacementPolicy
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.score import Score, score
from xgen_ray.placement.screen import UNTAGGED
from xgen_ray.placement.survey import kind_of
from xgen_ray.placement.types import EngineOptions, Plan, Refusal
from xgen_ray.placement.views import NodeView

_UNTAGGED = {row.backend: UNTAGGED for row in BACKENDS.values() if row.needs_gpu}


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What weighing ``view``, or one that is its equal, said: a plan with its score, or a refusal."""

    view: NodeView
    decision: Plan | Refusal
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """The model and everything about it that is the same on every node. It remembers its answers for as
    long as one decision takes; nodes that differ in nothing but their names are weighed once.
    """

    facts: ModelFacts
    options: EngineOptions
    policy: PlacementPolicy
    exclusions: tuple[Exclusion, ...] = ()
    observations: tuple[Observation, ...] = ()
    spread: bool = False
    per_gpu: bool = False
    _answers: dict[object, NodeAnswer] = field(default_factory=dict)

    def weigh(self, view: NodeView, replicas: int = 0) -> NodeAnswer:
        """``replicas`` of this model have been given to the node by the same decision already.

        The plan may be that of an equal node: take :meth:`plan_on` for one that is to be carried out.
        """
        key = (*self._likeness(view), replicas)
        answer = self._answers.get(key)
        if answer is None:
            decision = self._plan(view)
            scored = None
            if isinstance(decision, Plan):
                scored = score(view, decision, spread=self.spread, replicas=replicas)
            answer = self._answers[key] = NodeAnswer(view, decision, scored)
        return answer

    def plan_on(self, view: NodeView, replicas: int = 0) -> Plan | Refusal:
        """The decision with the node's own GPUs and figures in it."""
        answer = self.weigh(view, replicas)
        return answer.decision if answer.view is view else self._plan(view)

    def _plan(self, view: NodeView) -> Plan | Refusal:
        excluded = dict(exclusions_on(view.snapshot, self.facts, self.exclusions))
        return plan(
            self.facts,
            self.options.model_copy(update={"spread": self.spread}),
            view.snapshot,
            view.statuses,
            usage=view.figures(),
            exclusions=excluded if view.tagged else _UNTAGGED | excluded,
            policy=self.policy,
            leased_threads=view.outstanding.threads,
            taken=view.taken,
            leased_gpus=view.leased_gpus(),
            observations=self.observations,
            per_gpu=self.per_gpu,
        )

    def _likeness(self, view: NodeView) -> tuple[object, ...]:
        """Equal for two nodes exactly when a plan on one differs from one on the other in names only."""
        if any(isinstance(name, str) for name in self.options.gpus or ()):
            # A GPU is named that only one node has.
            return (view.node_id, view)
        usage = view.figures()
        figures = {gpu_key(live): live for live in usage.gpus}
        claimed, leased = dict(usage.claimed), view.leased_gpus()
        host = replace(view.snapshot.host, hostname="", memory_available_bytes=0)
        gpus = []
        for gpu in view.snapshot.detection.gpus:
            key = gpu_key(gpu)
            live = figures.get(key)
            if live is None and figures:
                # Matched by another name than its key, or not at all: not worth finding out here.
                return (view.node_id, view)
            seen = live and (
                live.device_index,
                live.pci_bus_id,
                live.memory_used_bytes,
                live.memory_free_bytes,
                live.shared_memory_used_bytes,
                live.utilization_percent,
            )
            gpus.append((seen, claimed.get(key), key in view.taken, key in leased))
        return (
            kind_of(view.snapshot, view.statuses, self.policy),
            host,
            tuple(gpus),
            usage.memory_available_bytes,
            claimed.get(RAM),
            usage.cpu_percent,
            view.outstanding.threads,
            view.has_files,
            view.tagged,
        )
