"""``lift``: forgive a backend that failed on a model."""

from typing import Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server, ServerRefusal
from xgen_ray.cli.exits import CommandError
from xgen_ray.errors import ModelNotFound
from xgen_ray.placement.types import Backend
from xgen_ray.schema import ExclusionReport, LiftRequest, ModelStatus, Phase


def lift(
    name: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A name that ps lists.")],
    backend: Annotated[
        Backend | None,
        typer.Option(
            "--backend", metavar="BACKEND", show_default=False, help="Only this one, else all of them."
        ),
    ] = None,
    url: options.Url = options.DEFAULT_URL,
    api_key: options.ApiKey = None,
    as_json: options.Json = False,
) -> None:
    """Give a backend that failed on a model another chance.

    A backend that dies on a model is left out for that model on such nodes,
    also after a restart, and the next one is taken. `xgen-ray ps MODEL` shows
    which and why. Lift it once the cause is mended: a driver, an engine.
    A model that failed is tried again at once; one that runs stays where it is.

    Examples:

      xgen-ray lift small
      xgen-ray lift small --backend llama-server-rocm
    """
    request = LiftRequest(model=name, backend=backend)
    with Server(url, api_key) as server:
        before = server.model_status(name)
        lifted = _excluded(before, backend)
        try:
            server.lift(request)
        except ServerRefusal as refusal:
            if refusal.code != ModelNotFound.code:
                raise
            raise CommandError(refusal.exit_code, refusal.message, _hint(before)) from None
    if as_json:
        told = [exclusion.model_dump(mode="json") for exclusion in lifted]
        output.print_json({"model": name, "backend": backend, "lifted": told})
        return
    console = output.stdout()
    for exclusion in lifted:
        console.print(
            f"lifted: {exclusion.backend.value} on {exclusion.node_kind} ({output.plain(exclusion.reason)})",
            soft_wrap=True,
        )
    again = before is not None and before.phase is Phase.FAILED
    console.print(
        f"{output.plain(name)} is tried again; `xgen-ray ps {output.plain(name)}` shows how far it is"
        if again
        else f"{output.plain(name)} may use {backend.value if backend else 'every backend'} again",
        soft_wrap=True,
    )


def _excluded(model: ModelStatus | None, backend: Backend | None) -> list[ExclusionReport]:
    """Return what lifting concerns. Of a model that is not loaded the server tells nothing beforehand."""
    known = model.exclusions if model is not None else ()
    return [exclusion for exclusion in known if backend in (None, exclusion.backend)]


def _hint(model: ModelStatus | None) -> str:
    if model is not None and model.exclusions:
        others = ", ".join(dict.fromkeys(exclusion.backend.value for exclusion in model.exclusions))
        return f"Excluded for {model.name}: {others}."
    return "`xgen-ray ps NAME` shows what is excluded for a model, and why."
