"""The decision: which backends a node has, which it should use, and where one model goes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from types import MappingProxyType

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.estimates import Observation
from xgen_ray.placement.explain import refusal_message
from xgen_ray.placement.pergpu import behind, with_gpu_verdicts
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.question import Cause, Leased, Question, Weighed, no
from xgen_ray.placement.rows import BACKENDS, VLLM_ROCM_GFX, preference
from xgen_ray.placement.sizes import gib
from xgen_ray.placement.survey import Found, has_hardware, survey
from xgen_ray.placement.types import (
    Backend,
    BackendRow,
    BackendStatus,
    Candidate,
    Engine,
    EngineOptions,
    Plan,
    Refusal,
)
from xgen_ray.placement.weigh import weigh

_NO_EXCLUSIONS: Mapping[Backend, str] = MappingProxyType({})


def available_backends(
    snapshot: NodeSnapshot,
    statuses: Sequence[BackendStatus],
    *,
    vllm_rocm_gfx: frozenset[str] = VLLM_ROCM_GFX,
) -> tuple[BackendStatus, ...]:
    """Every backend with the engine's word and the hardware's merged: it takes both to be available.

    ``statuses`` come from discovery, in any order. The devices that are left are those that are GPUs of
    this node.
    """
    found = survey(snapshot, statuses, replace(DEFAULT_POLICY, vllm_rocm_gfx=vllm_rocm_gfx))
    return tuple(item.status for item in found.values())


def recommend(
    snapshot: NodeSnapshot,
    statuses: Sequence[BackendStatus],
    *,
    vllm_rocm_gfx: frozenset[str] = VLLM_ROCM_GFX,
) -> str:
    """What suits this node best: ``vllm`` or ``llama-server`` on a GPU, else ``cpu``."""
    there = {
        status.backend
        for status in available_backends(snapshot, statuses, vllm_rocm_gfx=vllm_rocm_gfx)
        if status.available
    }
    for engine in (Engine.VLLM, Engine.LLAMA_SERVER):
        if any(row.backend in there for row in BACKENDS.values() if row.engine is engine and row.needs_gpu):
            return engine.value
    return "cpu"


def plan(
    facts: ModelFacts,
    options: EngineOptions,
    snapshot: NodeSnapshot,
    statuses: Sequence[BackendStatus],
    *,
    usage: NodeUsage | None = None,
    exclusions: Mapping[Backend, str] = _NO_EXCLUSIONS,
    policy: PlacementPolicy = DEFAULT_POLICY,
    leased_threads: int = 0,
    taken: frozenset[str] = frozenset(),
    leased_gpus: frozenset[str] = frozenset(),
    observations: Sequence[Observation] = (),
    per_gpu: bool = False,
) -> Plan | Refusal:
    """Where ``facts`` goes on this node, or why nowhere.

    A backend that the options name is used or refused, never replaced. ``exclusions`` are backends that
    must not be used now, each with its reason, even if named. The same input gives the same answer.

    ``leased_threads`` compute for other models, so this one gets fewer. GPUs whose keys are ``taken`` are
    not offered, because another model has them whole; one of ``leased_gpus`` is never given whole.
    ``observations``, oldest first, correct the bills. With ``per_gpu`` the candidates tell of each GPU, to
    show it: that changes no decision, and takes about as long again.
    """
    task = options.task or facts.task
    leased = Leased(leased_threads, taken, leased_gpus)
    question = Question(facts, task, options, snapshot, usage, policy, leased, tuple(observations))
    found = survey(snapshot, statuses, policy)
    weighed = tuple(
        _weigh_one(BACKENDS[backend], found[backend], question, exclusions, per_gpu=per_gpu)
        for backend in preference(facts.format)
    )
    chosen = next((item for item in weighed if item.candidate.fits), None)
    if chosen is None or chosen.options is None or chosen.candidate.footprint is None:
        candidates = tuple(item.candidate for item in weighed)
        return Refusal(refusal_message(model_name(facts), options, weighed), candidates)
    backend = chosen.candidate.backend
    return Plan(
        facts=facts,
        backend=backend,
        command=found[backend].status.command,
        options=chosen.options,
        footprint=chosen.candidate.footprint,
        why=_why(chosen, question, weighed),
        candidates=tuple(_against(item.candidate, backend, facts) for item in weighed),
        notes=chosen.notes,
        warnings=_cpu_warning(BACKENDS[backend], question, weighed) + chosen.warnings,
        gpu_needs=chosen.gpu_needs,
    )


def model_name(facts: ModelFacts) -> str:
    """What a message calls the model."""
    return facts.name or PurePath(facts.path).name


def _weigh_one(
    row: BackendRow, found: Found, question: Question, exclusions: Mapping[Backend, str], *, per_gpu: bool
) -> Weighed:
    facts, asked = question.facts, question.options.backend
    if asked is not None and asked is not row.backend:
        return no(row, Cause.NOT_ASKED, [f"not weighed: the options ask for {asked}"])
    if facts.format not in row.formats:
        formats = " and ".join(sorted(row.formats))
        return no(row, Cause.FORMAT, [f"it reads {formats}; the model is {facts.format}"])
    if row.backend in exclusions:
        return no(row, Cause.EXCLUDED, [f"excluded: {exclusions[row.backend]}"])
    weighed = weigh(row, found, question)
    return with_gpu_verdicts(row, found, question, weighed) if per_gpu else weighed


def _worth_saying(item: Weighed, question: Question) -> bool:
    """Whether a backend that will not do is one that somebody could have expected here."""
    expected = item.cause not in (None, Cause.FORMAT, Cause.NOT_ASKED)
    return expected and has_hardware(BACKENDS[item.candidate.backend], question.snapshot)


def _against(candidate: Candidate, backend: Backend, facts: ModelFacts) -> Candidate:
    """``candidate`` as a plan shows it: one that would have fitted says what came first."""
    if not candidate.fits or candidate.backend is backend:
        return candidate
    reason = f"it fits too, but {backend} comes first for {facts.format}"
    return replace(behind(candidate, backend), reasons=(reason,))


def _why(chosen: Weighed, question: Question, weighed: Sequence[Weighed]) -> str:
    backend, options, bill = chosen.candidate.backend, chosen.options, chosen.candidate.footprint
    if options is None or bill is None:
        return ""
    where = ", ".join(gpu.device_name for gpu in options.gpus) or "the CPU"
    needs = f"{gib(bill.gpu_bytes)} of GPU memory and " if options.gpus else ""
    place = f"on {where}, with {needs}{gib(bill.host_bytes)} of RAM"
    if question.options.backend is not None:
        return f"{backend}, as asked for, {place}"
    before = weighed[: weighed.index(chosen)]
    passed = [item.candidate.backend for item in before if _worth_saying(item, question)]
    behind = f" ({', '.join(passed)} will not do)" if passed else ""
    return f"{backend} is the first choice for {question.facts.format} that works here{behind}, {place}"


def _cpu_warning(row: BackendRow, question: Question, weighed: Sequence[Weighed]) -> tuple[str, ...]:
    """Say so when a model lands on the CPU of a node that has GPUs and nobody asked for that."""
    asked = (
        question.options.backend is not None
        or question.options.gpus == ()
        or question.options.gpu_layers == 0
    )
    if row.needs_gpu or asked or not question.snapshot.detection.gpus:
        return ()
    reasons = [
        f"{item.candidate.backend}: {'; '.join(item.candidate.reasons)}"
        for item in weighed
        if BACKENDS[item.candidate.backend].needs_gpu and _worth_saying(item, question)
    ]
    return (f"runs on the CPU although the node has a GPU. {'. '.join(reasons)}",) if reasons else ()
