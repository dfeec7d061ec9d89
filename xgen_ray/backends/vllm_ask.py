"""Asking an installed vLLM: short runs of its own interpreter with a deadline, answers kept per build."""

import asyncio
import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xgen_ray.backends import vllm_questions
from xgen_ray.backends.flags import KnownFlags
from xgen_ray.backends.probe import AnswerCache, ask
from xgen_ray.backends.vllm_build import Command, VllmBuild, parse_build
from xgen_ray.backends.vllm_flags import parse_help
from xgen_ray.errors import EngineFailed

# Importing torch takes seconds; from a cold or shared disk, minutes.
BUILD_DEADLINE_S: Final = 180.0
HELP_DEADLINE_S: Final = 300.0
# Without it that is no help text but a list of its parts, or of nothing.
_EVERY_BUILD_HAS: Final = "--max-model-len"


async def ask_build(interpreter: Command, env: Mapping[str, str], cache: AnswerCache) -> VllmBuild:
    """What the vLLM of ``interpreter`` is and would do on this node. Never raises.

    Only success is remembered, for as long as its files stay the same and on this node alone: what a driver
    or a missing library spoils today may be mended tomorrow.
    """
    identity = fingerprint(interpreter, "build", platform.node())
    kept = None if identity is None else cache.get(f"vllm-{identity}.txt")
    if kept is not None:
        build = parse_build(interpreter, kept.splitlines())
        if build.works:
            return build
    source = await asyncio.to_thread(_questions)
    answer = await ask(interpreter, ["-c", source], env, BUILD_DEADLINE_S)
    if answer.failure is not None:
        return VllmBuild(interpreter, problem=_shown(answer.failure.message, source))
    build = parse_build(interpreter, answer.lines)
    if build.works and identity is not None:
        lines = [line for line in answer.lines if line.startswith(vllm_questions.MARK)]
        cache.put(f"vllm-{identity}.txt", "\n".join(lines))
    return build


async def ask_flags(command: Command, env: Mapping[str, str], cache: AnswerCache) -> KnownFlags:
    """What the server that ``command`` starts understands. Asked once for each build.

    Raises ``EngineFailed`` when it does not tell.
    """
    identity = fingerprint(command, "flags")
    kept = None if identity is None else cache.get(f"vllm-help-{identity}.txt")
    if kept is not None:
        return parse_help(kept)
    for question in ("--help=all", "--help"):
        answer = await ask(command, [question], env, HELP_DEADLINE_S)
        text = "\n".join(answer.lines)
        if answer.failure is None and _EVERY_BUILD_HAS in text:
            if identity is not None:
                cache.put(f"vllm-help-{identity}.txt", text)
            return parse_help(text)
    why = answer.failure.message if answer.failure is not None else f"it does not name {_EVERY_BUILD_HAS}"
    raise EngineFailed(
        f"{' '.join(command)} does not answer --help: {why}",
        answer.failure.failure if answer.failure is not None else None,
        answer.lines[-40:],
    )


def fingerprint(command: Command, *more: str) -> str | None:
    """Names an installation: changes when packages come and go. None where that cannot be told."""
    python = next((word for word in command if Path(word).name.startswith(("python", "pypy"))), None)
    found = None if python is None else shutil.which(python)
    if found is None:
        return None
    # Not its target: all environments of one Python share that.
    program = Path(found).absolute()
    folders = sorted(program.parent.parent.glob("lib*/python*/*-packages"))
    try:
        stamps = [[str(place), place.stat().st_mtime_ns] for place in (program, *folders)]
    except OSError:
        return None
    return hashlib.sha256(json.dumps([stamps, command, more]).encode()).hexdigest()[:32]


def _questions() -> str:
    return Path(vllm_questions.__file__).read_text(encoding="utf-8")


def _shown(message: str, source: str) -> str:
    """``message`` without the program that was asked with: it would hide the words around it."""
    return message.replace(f"-c {source}", "with our questions").replace(source, "our questions")
