"""Which engines are really on this node and able to run, found out by running them."""

import asyncio
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from xgen_ray.backends.llama_server import engine_environment
from xgen_ray.backends.probe import AnswerCache, ask, parse_devices, parse_version
from xgen_ray.backends.trial import Trial
from xgen_ray.backends.vllm import vllm_environment
from xgen_ray.backends.vllm_ask import ask_build
from xgen_ray.backends.vllm_build import VllmBuild, interpreter_of, judge
from xgen_ray.hardware import is_software_renderer, read_host
from xgen_ray.placement.rows import BACKENDS, DEVICE_PREFIX_ALIASES
from xgen_ray.placement.types import Backend, BackendRow, BackendStatus, Engine, EngineDevice

BUNDLED: Final = (sys.executable, "-m", "xgen_ray.backends.bundled_llama_server")
# A look at all of them must not take the node's cores from the engines that serve.
_AT_ONCE: Final = 2
# Every GPU, in the order in which the node counts them. Vulkan keeps the limits that its operator has
# set: they also decide how the engine numbers what it lists.
_EVERY_GPU: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": None,
        "HIP_VISIBLE_DEVICES": None,
        "ROCR_VISIBLE_DEVICES": None,
    }
)

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A llama-server command and what it says of itself. ``problem``: why it cannot even be asked."""

    command: Command
    version: str | None = None
    devices: tuple[EngineDevice, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        return "the bundled llama-server" if self.command == BUNDLED else self.command[0]


async def discover(
    *, path: str, commands: Mapping[Backend, Sequence[str]], cache_dir: Path, env: Mapping[str, str]
) -> tuple[BackendStatus, ...]:
    """The state of every backend, in the order of ``Backend``, each with its reason.

    ``commands`` are those that settings name; for the others the rows' names are looked for on ``path``,
    then among the programs that packages of this Python have brought along.
    ``env`` is the environment that engines are started with. What was tried is remembered in
    ``cache_dir`` for as long as program and processor stay the same. Raises nothing that an engine can
    cause, and leaves no process behind.
    """
    path = os.pathsep.join(filter(None, (path, sysconfig.get_path("scripts"))))
    changed = {**engine_environment(env), **_EVERY_GPU}
    child_env = {name: value for name, value in changed.items() if value is not None}
    candidates = {backend: _candidates(BACKENDS[backend], path, commands) for backend in Backend}
    host = await asyncio.to_thread(read_host)
    processor = f"{host.machine} {host.cpu_model} {' '.join(sorted(host.cpu_flags))}"
    trial = Trial(child_env, cache_dir / "engines", processor)
    turn = asyncio.Semaphore(_AT_ONCE)

    async def look(command: Command) -> LlamaServer:
        async with turn:
            return await _ask_llama_server(command, child_env)

    installed = {backend: _vllm_interpreter(BACKENDS[backend], path, commands) for backend in Backend}
    looks = map(look, sorted({one for many in candidates.values() for one in many}))
    asked, builds = await asyncio.gather(
        asyncio.gather(*looks), _ask_vllm(installed.values(), env, cache_dir / "engines")
    )
    servers = {server.command: server for server in asked}

    async def state(backend: Backend) -> BackendStatus:
        row = BACKENDS[backend]
        if row.engine is Engine.VLLM:
            interpreter = installed[backend]
            if interpreter is None:
                return _no_vllm(row, path, commands)
            return judge(row, builds[interpreter])
        if row.engine is Engine.LLAMA_CPP_PYTHON:
            return await _llama_cpp_python(row, trial)
        return await _first_that_can(row, [servers[command] for command in candidates[backend]], trial)

    return tuple(await asyncio.gather(*map(state, Backend)))


def _candidates(row: BackendRow, path: str, commands: Mapping[Backend, Sequence[str]]) -> tuple[Command, ...]:
    """The llama-server commands that may serve ``row``, best first, none of them tried."""
    if row.engine is not Engine.LLAMA_SERVER:
        return ()
    if row.backend in commands:
        return (tuple(commands[row.backend]),)
    programs = [shutil.which(name, path=path) for name in row.binary_names]
    found: list[Command] = [(program,) for program in programs if program is not None]
    if row.module is not None and importlib.util.find_spec(row.module) is not None:
        found.append(BUNDLED)
    return tuple(found)


async def _ask_llama_server(command: Command, env: Mapping[str, str]) -> LlamaServer:
    version = await ask(command, ["--version"], env)
    if version.failure is not None:
        return LlamaServer(command, problem=version.failure.message)
    said = parse_version(version.lines)
    # Always afresh: cards and drivers come and go while the program stays.
    listed = await ask(command, ["--list-devices"], env)
    if listed.failure is not None:
        return LlamaServer(command, said, problem=f"it cannot list its devices: {listed.failure.message}")
    return LlamaServer(command, said, parse_devices(listed.lines))


async def _first_that_can(row: BackendRow, servers: Sequence[LlamaServer], trial: Trial) -> BackendStatus:
    """The first usable one; its reason also tells what was wrong with those before it."""
    reasons: list[str] = []
    version = None
    for server in servers:
        status = await _judge(row, server, trial)
        if status.available:
            return replace(status, reason="; ".join([status.reason, *reasons]))
        reasons.append(status.reason)
        version = version or status.version
    return BackendStatus(row.backend, False, "; ".join(reasons) or _nothing_found(row), version=version)


async def _judge(row: BackendRow, server: LlamaServer, trial: Trial) -> BackendStatus:
    status = BackendStatus(row.backend, False, "", server.command, server.version)
    if server.problem is not None:
        return replace(status, reason=f"{server.name} does not run: {server.problem}")
    if not row.needs_gpu:
        problem = await trial.llama_server(server.command, server.version)
        if problem is not None:
            return replace(status, reason=f"{server.name} cannot compute on this CPU: {problem}")
        return replace(status, available=True, reason=f"{server.name} has computed a token on this CPU")
    prefixes = DEVICE_PREFIX_ALIASES.get(row.device_prefix or "", (row.device_prefix or "",))
    own = [device for device in server.devices if device.name.startswith(prefixes)]
    real = tuple(device for device in own if not is_software_renderer(device.description))
    if real:
        listed = ", ".join(f"{device.name} {device.description}" for device in real)
        return replace(status, available=True, reason=f"{server.name} lists {listed}", devices=real)
    if own:
        listed = ", ".join(f"{device.name} {device.description}" for device in own)
        return replace(
            status, reason=f"{server.name} lists software renderers only, which are no GPUs: {listed}"
        )
    listed = ", ".join(device.name for device in server.devices) or "none"
    reason = f"{server.name} lists no {row.device_api} device (it lists: {listed}); check the GPU's driver"
    return replace(status, reason=reason)


def _nothing_found(row: BackendRow) -> str:
    names = " or ".join(row.binary_names)
    module = f", and the Python package {row.module} is not installed" if row.module else ""
    return f"no {names} on PATH{module}"


def _vllm_interpreter(
    row: BackendRow, path: str, commands: Mapping[Backend, Sequence[str]]
) -> Command | None:
    """The Python whose vLLM may serve ``row``: the one that settings name, else that of ``vllm`` on PATH."""
    if row.engine is not Engine.VLLM:
        return None
    return interpreter_of(commands.get(row.backend, row.binary_names[:1]), path)


async def _ask_vllm(
    interpreters: Iterable[Command | None], env: Mapping[str, str], folder: Path
) -> Mapping[Command, VllmBuild]:
    """What each of them says, asked once however many rows it may serve; one after another, as each takes
    seconds of a core.
    """
    changed = {**vllm_environment(env), **_EVERY_GPU}
    child_env = {name: value for name, value in changed.items() if value is not None}
    cache = AnswerCache(folder)
    found = sorted({interpreter for interpreter in interpreters if interpreter is not None})
    return {interpreter: await ask_build(interpreter, child_env, cache) for interpreter in found}


def _no_vllm(row: BackendRow, path: str, commands: Mapping[Backend, Sequence[str]]) -> BackendStatus:
    script = shutil.which(row.binary_names[0], path=path)
    if row.backend in commands:
        named = " ".join(commands[row.backend])
        reason = (
            f"its command {named!r} is neither the Python that has vLLM nor a vllm command that is there; "
            "no other program may stand before it"
        )
        return BackendStatus(row.backend, False, reason)
    if script is not None:
        reason = (
            f"{script} does not say which Python runs it; set that Python as the command of {row.backend}"
        )
        return BackendStatus(row.backend, False, reason)
    return BackendStatus(row.backend, False, "no vllm on PATH, and no command is set for it")


async def _llama_cpp_python(row: BackendRow, trial: Trial) -> BackendStatus:
    if row.module is None or importlib.util.find_spec(row.module) is None:
        return BackendStatus(row.backend, False, f"the Python package {row.backend} is not installed")
    try:
        version = importlib.metadata.version(row.backend)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    problem = await trial.llama_cpp_python(version)
    if problem is not None:
        return BackendStatus(row.backend, False, f"{row.backend} does not run here: {problem}", (), version)
    return BackendStatus(row.backend, True, f"{row.backend} has computed a token here", (), version)
