"""Trying out whether an engine can compute on this processor: one token of a tiny model."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from xgen_ray.backends.child_engine import ChildEngine
from xgen_ray.backends.llama_server import LlamaServerLauncher
from xgen_ray.backends.probe import AnswerCache, ask, fingerprint
from xgen_ray.backends.trial_model import trial_model
from xgen_ray.errors import XgenRayError
from xgen_ray.models.types import ModelFacts, ModelFormat, ModelTask
from xgen_ray.placement.types import Backend, Footprint, Plan, ResolvedOptions
from xgen_ray.process import FailureClass

# Takes a fraction of a second; a node that is busy with loading a model may need much longer.
TRIAL_DEADLINE_S: Final = 60.0
_HOST: Final = "127.0.0.1"
_LLAMA_CPP_PYTHON: Final = (sys.executable, "-m", "xgen_ray.backends.llama_cpp_trial")
_OPTIONS: Final = ResolvedOptions(
    task=ModelTask.GENERATE, context=256, slots=1, batch=64, ubatch=64, threads=1, gpu_layers=0
)


class Trial:
    """Runs trials and remembers what cannot change: success, and code that this processor lacks.

    ``folder`` keeps the model and the answers; ``processor`` tells one kind of machine from another, for
    folders that several share. ``env`` is the environment of the engines tried.
    """

    def __init__(self, env: Mapping[str, str], folder: Path, processor: str) -> None:
        self._env = env
        self._folder = folder
        self._cache = AnswerCache(folder)
        self._processor = processor

    async def llama_server(self, command: Sequence[str], version: str | None) -> str | None:
        """Why ``command`` cannot compute on this CPU; None if it can."""
        name = f"trial-{fingerprint(command, version or '', self._processor)}.json"
        remembered = self._recall(name)
        if remembered is not None:
            return remembered["problem"]
        problem, lasting = await self._compute(tuple(command))
        if lasting:
            self._cache.put(name, json.dumps({"problem": problem}))
        return problem

    async def llama_cpp_python(self, version: str) -> str | None:
        """Why the installed llama-cpp-python cannot be used in this Python; None if it can."""
        name = f"trial-{fingerprint(_LLAMA_CPP_PYTHON, version, self._processor)}.json"
        remembered = self._recall(name)
        if remembered is not None:
            return remembered["problem"]
        model = await asyncio.to_thread(trial_model, self._folder)
        answer = await ask(_LLAMA_CPP_PYTHON, [str(model)], self._env, TRIAL_DEADLINE_S)
        if answer.failure is None:
            self._cache.put(name, json.dumps({"problem": None}))
            return None
        if answer.failure.failure is FailureClass.ILLEGAL_INSTRUCTION:
            self._cache.put(name, json.dumps({"problem": answer.failure.message}))
        return answer.failure.message

    def _recall(self, name: str) -> dict[str, str | None] | None:
        try:
            remembered = json.loads(self._cache.get(name) or "")
            return {"problem": remembered["problem"]}
        except (ValueError, LookupError, TypeError):
            return None

    async def _compute(self, command: tuple[str, ...]) -> tuple[str | None, bool]:
        """Why not (None: it can), and whether that is worth remembering."""
        model = await asyncio.to_thread(trial_model, self._folder)
        plan = _plan(command, model)
        launcher = LlamaServerLauncher(
            plan, host=_HOST, base_env=self._env, cache_dir=self._folder.parent, alias="trial"
        )
        engine = ChildEngine(plan, launcher, host=_HOST, base_env=launcher.environment)
        try:
            async with engine, asyncio.timeout(TRIAL_DEADLINE_S):
                await engine.load(lambda _: None)
        except TimeoutError:
            return f"it did not compute a token of a tiny model within {TRIAL_DEADLINE_S:g} s", False
        except XgenRayError as error:
            failure = getattr(error, "failure", None)
            return error.message, failure == FailureClass.ILLEGAL_INSTRUCTION
        return None, True


def _plan(command: tuple[str, ...], model: Path) -> Plan:
    facts = ModelFacts(
        format=ModelFormat.GGUF,
        path=str(model),
        files=(str(model),),
        weight_bytes=model.stat().st_size,
        architecture="llama",
    )
    return Plan(
        facts=facts,
        backend=Backend.LLAMA_SERVER_CPU,
        command=command,
        options=_OPTIONS,
        footprint=Footprint(()),
        why="a trial",
        candidates=(),
    )
