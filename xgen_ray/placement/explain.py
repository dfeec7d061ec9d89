"""One sentence or two for a refusal: what, the numbers, and what to do."""

from collections.abc import Sequence

from xgen_ray.placement.question import Cause, Weighed
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import Candidate, Engine, EngineOptions


def refusal_message(name: str, options: EngineOptions, weighed: Sequence[Weighed]) -> str:
    """The refusal in short; every candidate's own reasons stand beside it."""
    tried = [item for item in weighed if item.cause not in (Cause.NOT_ASKED, Cause.FORMAT)]
    if not tried:
        # A backend was named that cannot read the format.
        wrong = next(item for item in weighed if item.cause is Cause.FORMAT)
        return f"{name} cannot run on {_said(wrong)}. Name another backend or none."
    short = [item for item in tried if item.cause is Cause.MEMORY]
    if short:
        first = short[0]
        also = "".join(f" {item.candidate.backend} {item.short}." for item in short[1:])
        text = f"{name} {first.short} ({first.candidate.backend})."
        return f"{text}{also} {memory_advice(first.candidate, options)}"
    # What is wrong with the request itself is wrong on every backend: say it once.
    common = [
        text for text in tried[0].candidate.reasons if all(text in item.candidate.reasons for item in tried)
    ]
    if common and all(item.cause is Cause.REQUEST for item in tried):
        return f"{name} cannot be placed: {'; '.join(common)}."
    listed = "; ".join(_said(item) for item in tried)
    return f"{name} cannot be placed on this node: {listed}. {_advice(tried)}"


def memory_advice(candidate: Candidate, options: EngineOptions) -> str:
    """What to do when memory is all that is missing."""
    row = BACKENDS[candidate.backend]
    steps = []
    if options.context is not None:
        steps.append("lower the context")
    if options.slots is not None and options.slots > 1 and row.engine is not Engine.VLLM:
        steps.append("lower slots")
    if options.gpu_memory_utilization is not None:
        steps.append("change gpu_memory_utilization")
    if options.gpus:
        steps.append("name other GPUs")
    steps.append("take a smaller quantisation")
    if candidate.limited:
        # Another model's going would not raise it.
        steps.append("raise memory_bytes in the configuration's profiles or add a GPU")
    elif row.needs_gpu:
        steps.append("unload another model or add a GPU")
    else:
        steps.append("unload another model or add RAM")
    text = ", ".join(steps[:-1]) + f", {steps[-1]}"
    return text[0].upper() + text[1:] + "."


def _advice(tried: Sequence[Weighed]) -> str:
    absent = [item.candidate.backend for item in tried if item.cause is Cause.ABSENT]
    causes = {item.cause for item in tried}
    steps = []
    if causes & {Cause.REQUEST, Cause.DEVICE}:
        steps.append("change the options")
    if absent:
        steps.append(f"install {' or '.join(absent)}")
    if Cause.TAKEN in causes:
        steps.append("unload the model that has its GPU whole")
    if Cause.EXCLUDED in causes:
        steps.append("mend what a backend was excluded for")
    text = ", or ".join(steps)
    return text[0].upper() + text[1:] + "."


def _said(item: Weighed) -> str:
    return f"{item.candidate.backend}: {'; '.join(item.candidate.reasons)}"
