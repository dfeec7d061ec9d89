"""The decision: which backends a node has, which it should use, and where one model goes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from types import MappingProxyType

from xgen_ray.hardware.types import NodeSnapshot, NodeUsage
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.devices import usable_gpus
from xgen_ray.placement.explain import refusal_message
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.rows import BACKENDS, VLLM_ROCM_GFX, preference
from xgen_ray.placement.sizes import gib
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
from xgen_ray.placement.weigh import Cause, Question, Weighed, by_backend, no, weigh

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
    return _merged(snapshot, statuses, replace(DEFAULT_POLICY, vllm_rocm_gfx=vllm_rocm_gfx))


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
) -> Plan | Refusal:
    """Where ``facts`` goes on this node, or why nowhere.

    A backend that the options name is used or refused, never replaced. ``exclusions`` are backends that
    must not be used now, each with its reason, even if named. The same input gives the same answer.
    """
    task = options.task or facts.task
    question = Question(facts, task, options, snapshot, usage, policy)
    merged = by_backend(_merged(snapshot, statuses, policy))
    weighed = tuple(
        _weigh_one(BACKENDS[backend], merged[backend], question, exclusions)
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
        command=merged[backend].command,
        options=chosen.options,
        footprint=chosen.candidate.footprint,
        why=_why(chosen, question, weighed),
        candidates=tuple(_against(item.candidate, backend, facts) for item in weighed),
        notes=chosen.notes,
        warnings=_cpu_warning(BACKENDS[backend], question, weighed) + chosen.warnings,
    )


def model_name(facts: ModelFacts) -> str:
    """What a message calls the model."""
    return facts.name or PurePath(facts.path).name


def _weigh_one(
    row: BackendRow, status: BackendStatus, question: Question, exclusions: Mapping[Backend, str]
) -> Weighed:
    facts, asked = question.facts, question.options.backend
    if asked is not None and asked is not row.backend:
        return no(row, Cause.NOT_ASKED, [f"not weighed: the options ask for {asked}"])
    if facts.format not in row.formats:
        formats = " and ".join(sorted(row.formats))
        return no(row, Cause.FORMAT, [f"it reads {formats}; the model is {facts.format}"])
    if row.backend in exclusions:
        return no(row, Cause.EXCLUDED, [f"excluded: {exclusions[row.backend]}"])
    return weigh(row, status, question)


def _merged(
    snapshot: NodeSnapshot, statuses: Sequence[BackendStatus], policy: PlacementPolicy
) -> tuple[BackendStatus, ...]:
    known = by_backend(statuses)
    absent = "nobody has looked for it on this node"
    return tuple(
        _with_hardware(
            row, known.get(row.backend, BackendStatus(row.backend, False, absent)), snapshot, policy
        )
        for row in BACKENDS.values()
    )


def _with_hardware(
    row: BackendRow, status: BackendStatus, snapshot: NodeSnapshot, policy: PlacementPolicy
) -> BackendStatus:
    if not row.needs_gpu:
        return status
    gpus = snapshot.detection.gpus
    if not _has_hardware(row, snapshot):
        kinds = " or ".join(sorted(kind.value for kind in row.gpu_types if kind.value != "unknown"))
        reason = f"no {kinds} GPU on this node (the engine: {status.reason})"
        return replace(status, available=False, reason=reason, devices=())
    if not status.available:
        return status
    usable, reasons = usable_gpus(row, gpus, status.devices, policy)
    if not usable:
        return replace(status, available=False, reason="; ".join(reasons), devices=())
    return replace(status, devices=tuple(item.device for item in usable if item.device is not None))


def _has_hardware(row: BackendRow, snapshot: NodeSnapshot) -> bool:
    return not row.needs_gpu or any(gpu.gpu_type in row.gpu_types for gpu in snapshot.detection.gpus)


def _worth_saying(item: Weighed, question: Question) -> bool:
    """Whether a backend that will not do is one that somebody could have expected here."""
    expected = item.cause not in (None, Cause.FORMAT, Cause.NOT_ASKED)
    return expected and _has_hardware(BACKENDS[item.candidate.backend], question.snapshot)


def _against(candidate: Candidate, backend: Backend, facts: ModelFacts) -> Candidate:
    """``candidate`` as a plan shows it: one that would have fitted says what came first."""
    if not candidate.fits or candidate.backend is backend:
        return candidate
    return replace(candidate, reasons=(f"it fits too, but {backend} comes first for {facts.format}",))


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
