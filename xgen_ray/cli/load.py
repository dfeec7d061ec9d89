"""``load``."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated

import typer
from pydantic import ValidationError

from xgen_ray.cli import options, output
from xgen_ray.cli.candidates import weighed
from xgen_ray.cli.client import Server, ServerRefusal
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.waiting import follow, interruptible, progress_shown
from xgen_ray.schema import CandidateReport, ModelStatus, Phase, VerdictReport

_BODIES = {
    "embed": ("embeddings", '"input":"Hello"'),
    "rerank": ("rerank", '"query":"Hello","documents":["Hi","Bye"]'),
}
_CHAT_BODY = ("chat/completions", '"messages":[{"role":"user","content":"Hello"}]')


def load(
    model: options.Model,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Serve it under this name, else one made from the file's."),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="POOL",
            show_default=False,
            help="Serve the name by this pool as well: other files, engines or nodes.",
        ),
    ] = None,
    replicas: options.Replicas = None,
    min_replicas: options.MinReplicas = None,
    max_replicas: options.MaxReplicas = None,
    ttl: options.Ttl = None,
    keep_warm: options.KeepWarm = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", metavar=options.FLAG, help="Wait until the model answers, or return at once."
        ),
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", min=1, metavar="SECONDS", help="Wait at most this many seconds; the load goes on."
        ),
    ] = 1800,
    node: options.Nodes = None,
    evict: options.Evict = options.Eviction.NEVER,
    pin: options.Pin = False,
    spread: options.Spread = False,
    backend: options.BackendChoice = None,
    context: options.Context = None,
    slots: options.Slots = None,
    gpu: options.Gpus = None,
    option: options.Pairs = None,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Load a model and serve it.

    Waits until the model has answered a first request, and shows how far it
    is. Interrupting the wait does not stop the load.

    Examples:

      xgen-ray load ./model.gguf --name small
      xgen-ray load hf:org/name:model-q4_k_m.gguf --context 8192 --slots 4
      xgen-ray load /models/big --backend vllm-cuda --gpu 0,1 -o dtype=bfloat16
      xgen-ray load hf:org/name --replicas 3 --spread --evict idle
      xgen-ray load ./model.gguf --max-replicas 4 --ttl 600
      xgen-ray load hf:org/name --name llama --pool vllm --backend vllm-cuda
      xgen-ray load ./llama.gguf --name llama --pool apu --node apu-1
    """
    request = options.load_request(
        model,
        name=name,
        pool=pool,
        replicas=replicas,
        scaling=options.scaling_of(min_replicas, max_replicas, ttl, keep_warm),
        nodes=node,
        evict=evict,
        pinned=pin,
        spread=spread,
        backend=backend,
        context=context,
        slots=slots,
        gpus=gpu,
        pairs=option,
    )
    with Server(url, api_key) as server:
        started = time.monotonic()
        status = _start(server, lambda: server.load(request))
        if wait:
            with progress_shown() as show, interruptible(status.name):
                status = follow(server, status, deadline=started + timeout, show=show)
        if as_json:
            output.print_json(status)
        if status.phase is Phase.FAILED:
            raise _failure(status)
        if not as_json:
            _tell_success(server, status, time.monotonic() - started if wait else None)


def _start(server: Server, load: Callable[[], ModelStatus]) -> ModelStatus:
    """Start the load; a refusal shows all that was weighed before it is raised."""
    try:
        return load()
    except ServerRefusal as refusal:
        _show_weighed((), _refused_candidates(refusal))
        raise


def _refused_candidates(refusal: ServerRefusal) -> list[CandidateReport]:
    """Return what was weighed, as far as the server tells it in a way that this version reads."""
    told = refusal.details.get("candidates")
    candidates = []
    for item in told if isinstance(told, list) else ():
        # A backend that is newer than this program is no reason to hide the others.
        with suppress(AttributeError, KeyError, TypeError, ValidationError):
            candidates.append(
                CandidateReport(
                    node=item.get("node"),
                    backend=item["backend"],
                    fits=False,
                    reasons=tuple(item["reasons"]),
                )
            )
    return candidates


def _failure(status: ModelStatus) -> CommandError:
    """Return the error of a failed load, having shown what it is made of."""
    console = output.stderr()
    if status.plan is not None and not status.plan.accepted:
        _show_weighed(status.plan.nodes, status.plan.candidates)
        return CommandError(ExitCode.REFUSED, status.reason or status.plan.message)
    last = max(status.failures, key=lambda failure: failure.at, default=None)
    if last is not None:
        for line in last.log_tail[-10:]:
            console.print(f"  | {output.plain(line)}", style="dim", soft_wrap=True)
    hint = last.advice if last and last.advice and last.advice not in status.reason else None
    return CommandError(ExitCode.FAILED, f"{status.name}: {status.reason}", hint)


def _show_weighed(verdicts: Sequence[VerdictReport], candidates: Sequence[CandidateReport]) -> None:
    console = output.stderr()
    for table in weighed(verdicts, candidates):
        console.print(table)
        console.print()


def _tell_success(server: Server, status: ModelStatus, took_s: float | None) -> None:
    console = output.stdout()
    if status.phase is Phase.SLEEPING:
        console.print(f"{status.name} sleeps; the next request wakes it")
        return
    if status.phase is not Phase.READY:
        console.print(
            f"{status.name} is {status.phase.value}; `xgen-ray ps {status.name}` shows how far it is"
        )
        return
    where = sorted({replica.node for replica in status.replicas})
    backends = [engine.backend.value for engine in status.engines] or [status.backend or ""]
    on = f" on {', '.join(dict.fromkeys(backends))}" if any(backends) else ""
    at = f" ({', '.join(where)})" if where else ""
    after = f" after {output.duration(took_s)}" if took_s is not None and took_s >= 1 else ""
    console.print(f"{status.name} is ready{on}{at}{after}")
    path, body = _BODIES.get(status.task or "", _CHAT_BODY)
    key = ' -H "Authorization: Bearer $XGEN_RAY_API_KEY"' if server.has_key else ""
    console.print(f"endpoint: {_endpoint(server, status)}")
    console.print(
        f"curl {server.url}/v1/{path}{key} -H 'Content-Type: application/json' "
        f'-d \'{{"model":"{status.name}",{body}}}\'',
        soft_wrap=True,
    )


def _endpoint(server: Server, status: ModelStatus) -> str:
    endpoint = status.endpoint or "/v1"
    return endpoint if endpoint.startswith("http") else f"{server.url}/{endpoint.lstrip('/')}"
