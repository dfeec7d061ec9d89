"""From control's state to what the management API answers about models. Pure."""

import dataclasses
from collections.abc import Iterable, Sequence

from xgen_ray.hardware.types import GPUInfo
from xgen_ray.placement import Assignment, Exclusion, FleetPlan, FleetRefusal, NodeVerdict, model_key
from xgen_ray.placement.types import Candidate, Footprint, Plan, Refusal
from xgen_ray.schema import (
    AssignmentReport,
    AwaitedNodes,
    CandidateReport,
    EngineStatus,
    ExclusionReport,
    FaultReport,
    FootprintLine,
    GPUVerdictReport,
    ModelStatus,
    Phase,
    PlanReport,
    VerdictReport,
)
from xgen_ray.serving.state import App, Awaited, Model


def model_status(model: Model, base_url: str, exclusions: Sequence[Exclusion] = ()) -> ModelStatus:
    """``base_url`` is where clients reach the router, without ``/v1``."""
    first = model.live[0].plan if model.live else None
    report: PlanReport | None = None
    if first is not None:
        report = one_node_report(model.request.model, first)
        report = report.model_copy(update={"nodes": tuple(map(_verdict, model.verdicts))})
    elif model.refusal is not None:
        report = plan_report(model.request.model, model.refusal)
    reachable = model.phase in (Phase.READY, Phase.RECOVERING, Phase.SLEEPING)
    key = model_key(model.facts) if model.facts is not None else None
    replicas = [replica.status for app in model.live for replica in app.replicas.values()]
    return ModelStatus(
        name=model.name,
        model=model.request.model,
        origin=model.origin,
        phase=model.phase,
        reason=model.reason,
        endpoint=f"{base_url}/v1" if reachable else None,
        task=first.options.task.value if first else None,
        format=model.facts.format.value if model.facts else None,
        backend=first.backend if first else None,
        plan=report,
        engines=tuple(_engine(app) for app in model.live),
        replicas=tuple(sorted(replicas, key=lambda status: status.replica_id)),
        wanted_replicas=model.wanted,
        shortfall=model.shortfall,
        awaited_nodes=_awaited(model.awaited),
        progress=model.progress,
        failures=model.failures,
        exclusions=tuple(_exclusion(one) for one in exclusions if one.model == key),
        since=model.since,
    )


def _awaited(awaited: Awaited | None) -> AwaitedNodes | None:
    return None if awaited is None else AwaitedNodes(types=dict(awaited.demand.counts), since=awaited.since)


def plan_report(source: str, decision: FleetPlan | FleetRefusal) -> PlanReport:
    """The same words for a dry run and for a real load."""
    verdicts = tuple(map(_verdict, decision.nodes))
    # What each GPU said is long in a large fleet: once is enough.
    candidates = tuple(
        candidate.model_copy(update={"gpus": ()}) for verdict in verdicts for candidate in verdict.candidates
    )
    if isinstance(decision, FleetRefusal):
        return PlanReport(
            accepted=False,
            model=source,
            message=decision.message,
            candidates=candidates,
            nodes=verdicts,
            evict=decision.would_fit_without,
            faults=_faults(candidate for verdict in decision.nodes for candidate in verdict.candidates),
        )
    first = decision.assignments[0]
    report = one_node_report(source, first.plan)
    where = f" on {first.node}" if len(verdicts) > 1 else ""
    more = len(decision.assignments) - 1
    others = f", and {more} more" if more else ""
    leaving = f", once {', '.join(decision.evict)} has left" if decision.evict else ""
    # What is missing comes first: it is what the reader would otherwise not learn.
    short = f"{decision.message} Would" if decision.missing else "would"
    return report.model_copy(
        update={
            "message": f"{short} run{where} by {first.plan.backend.value}{others}{leaving}: {first.why}",
            "candidates": candidates,
            "assignments": tuple(map(_assignment, decision.assignments)),
            "nodes": verdicts,
            "evict": decision.evict,
            "missing": decision.missing,
            "shortfall": decision.message or None,
        }
    )


def one_node_report(source: str, decision: Plan | Refusal) -> PlanReport:
    """A plan for one node alone."""
    if isinstance(decision, Refusal):
        return PlanReport(
            accepted=False,
            model=source,
            message=decision.message,
            candidates=tuple(_candidate(candidate) for candidate in decision.candidates),
        )
    options = {
        field.name: getattr(decision.options, field.name)
        for field in dataclasses.fields(decision.options)
        if field.name != "gpus"
    }
    return PlanReport(
        accepted=True,
        model=source,
        message=f"would run on {decision.backend.value}: {decision.why}",
        backend=decision.backend,
        why=decision.why,
        gpus=tuple(_gpu_words(gpu) for gpu in decision.options.gpus),
        options={name: value for name, value in options.items() if value not in (None, ())},
        footprint=_footprint(decision.footprint),
        footprint_bytes=decision.footprint.total_bytes,
        candidates=tuple(_candidate(candidate) for candidate in decision.candidates),
        notes=tuple(f"{note.option} = {note.value}: {note.reason}" for note in decision.notes),
        warnings=decision.warnings,
    )


def _gpu_words(gpu: GPUInfo) -> str:
    return f"[{gpu.device_index}] {gpu.device_name}"


def _footprint(footprint: Footprint) -> tuple[FootprintLine, ...]:
    return tuple(
        FootprintLine(name=item.name, size_bytes=item.size_bytes, on_gpu=item.on_gpu, detail=item.detail)
        for item in footprint.items
    )


def _faults(candidates: Iterable[Candidate]) -> tuple[FaultReport, ...]:
    """For each option to blame, the first thing that is wrong with it."""
    first: dict[str, str] = {}
    for candidate in candidates:
        for fault in candidate.faults:
            first.setdefault(fault.option, fault.reason)
    return tuple(FaultReport(option=option, message=message) for option, message in first.items())


def _verdict(verdict: NodeVerdict) -> VerdictReport:
    return VerdictReport(
        node=verdict.name,
        fits=verdict.fits,
        reasons=verdict.reasons,
        candidates=tuple(_candidate(candidate, verdict.name) for candidate in verdict.candidates),
    )


def _assignment(assignment: Assignment) -> AssignmentReport:
    plan = assignment.plan
    return AssignmentReport(
        node=assignment.node,
        backend=plan.backend,
        gpus=tuple(_gpu_words(gpu) for gpu in plan.options.gpus),
        footprint_bytes=plan.footprint.total_bytes,
        why=assignment.why,
    )


def _exclusion(exclusion: Exclusion) -> ExclusionReport:
    return ExclusionReport(
        model=exclusion.model,
        backend=exclusion.backend,
        node_kind=exclusion.node_kind,
        reason=exclusion.reason,
    )


def _engine(app: App) -> EngineStatus:
    options = app.plan.options
    return EngineStatus(
        app=app.name,
        node=app.node,
        backend=app.backend,
        phase=app.phase.value,
        why=app.why,
        gpus=tuple(_gpu_words(gpu) for gpu in options.gpus),
        context=options.context,
        slots=options.slots,
        ready=app.ready > 0,
        footprint_bytes=app.plan.footprint.total_bytes,
    )


def _candidate(candidate: Candidate, node: str | None = None) -> CandidateReport:
    return CandidateReport(
        node=node,
        backend=candidate.backend,
        fits=candidate.fits,
        reasons=candidate.reasons,
        needs_bytes=candidate.footprint.total_bytes if candidate.footprint else None,
        gpus=tuple(
            GPUVerdictReport(
                id=gpu.position, name=gpu.name, chosen=gpu.chosen, fits=gpu.fits, reason=gpu.reason
            )
            for gpu in candidate.gpus
        ),
    )
