"""The command line of llama-server, for every kind of device: data in, ``LaunchSpec`` out.

One builder for the Vulkan, CUDA, ROCm, Metal and CPU rows; what differs between them is in the row and
in the plan. No user's string ever stands where a flag could: each follows a flag that takes a value, and
none that could pass for a flag is taken.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from xgen_ray.backends.extra_args import check_extra_args
from xgen_ray.backends.flags import KnownFlags, express
from xgen_ray.backends.launch import Launch, base_url
from xgen_ray.backends.probe import AnswerCache, known_flags
from xgen_ray.backends.visibility import renumbered, visibility
from xgen_ray.backends.vulkan_order import vulkan_positions
from xgen_ray.errors import InvalidRequest
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.types import DeviceAPI, Plan, ResolvedOptions
from xgen_ray.process import LaunchSpec, Readiness, loading_deadline

_MIB = 2**20
# The kernel takes 128 KiB in one argument.
_LONGEST_TEMPLATE = 100_000
_KEY_VARIABLE = "LLAMA_API_KEY"
_CREDENTIALS: Final = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")

_TASKS: Final = MappingProxyType({ModelTask.EMBED: "embed", ModelTask.RERANK: "rerank"})
# Whatever the device: waiting threads must sleep, or two engines on shared cores stall each other.
_ENV: Final = MappingProxyType({"OMP_WAIT_POLICY": "PASSIVE"})
_BY_NAME_ALONE: Final = (
    "the engine does not say for sure which of the drivers' Vulkan devices are its own: it is kept to them "
    "by --device alone"
)


class LlamaServerLauncher:
    """Decides llama-server's command: asks the build what it understands, then builds.

    ``environment`` is ``base_env`` without what llama.cpp would read options or credentials from.
    """

    def __init__(
        self, plan: Plan, *, host: str, base_env: Mapping[str, str], cache_dir: Path, alias: str | None
    ) -> None:
        self._plan = plan
        self._host = host
        self._alias = alias or alias_of(plan.facts.path)
        self._cache = AnswerCache(cache_dir / "engines")
        self.environment = engine_environment(base_env)

    async def __call__(self, port: int, key: str) -> Launch:
        known = await known_flags(self._plan.command, self.environment, self._cache)
        positions = await self._vulkan_positions()
        return build(
            self._plan,
            port=port,
            key=key,
            known=known,
            host=self._host,
            alias=self._alias,
            vulkan_positions=positions,
        )

    async def _vulkan_positions(self) -> tuple[int, ...] | None:
        """Asked at every start: drivers come and go, and with them the numbers."""
        options = self._plan.options
        api = BACKENDS[self._plan.backend].device_api
        if api is not DeviceAPI.VULKAN or not options.devices or options.gpu_layers <= 0:
            return None
        return await vulkan_positions(self._plan.command, self.environment, options.devices)


def engine_environment(env: Mapping[str, str]) -> dict[str, str]:
    """``env`` without the variables that llama.cpp takes flags from (``LLAMA_ARG_TOOLS``), or tokens."""
    return {
        name: value
        for name, value in env.items()
        if not name.startswith("LLAMA_") and name not in _CREDENTIALS
    }


def alias_of(path: str) -> str:
    """A name for a model that nobody has named. Without one, answers would show where its file lies."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).lstrip("._-")
    return name[:128] or "model"


def build(
    plan: Plan,
    *,
    port: int,
    key: str,
    known: KnownFlags,
    host: str = "127.0.0.1",
    alias: str | None = None,
    vulkan_positions: Sequence[int] | None = None,
) -> Launch:
    """The command that runs ``plan`` on ``host:port``, opened by ``key`` alone. Starts nothing.

    ``known`` is what this build of llama-server understands. ``alias`` is the name under which answers
    speak of the model. ``vulkan_positions`` are what Vulkan's variable calls the plan's devices, if that is
    known. Raises ``UnknownOption`` when the build cannot do what the plan needs, and
    ``InvalidRequest`` for values that no command line should carry.
    """
    row = BACKENDS[plan.backend]
    options = plan.options
    on_gpu = row.needs_gpu and options.gpu_layers > 0 and bool(options.devices)
    argv = list(plan.command)
    notes: list[str] = []
    devices = renumbered(row.device_api, row.device_prefix, options.devices, vulkan_positions)
    for meaning, value in _meanings(plan, devices if on_gpu else (), host, port, alias):
        said = express(known, meaning, None if value is None else _plain(meaning, value))
        argv += said.argv
        notes += [said.note] if said.note else []
    if on_gpu and row.device_api is DeviceAPI.VULKAN and vulkan_positions is None:
        notes.append(_BY_NAME_ALONE)
    limits = visibility(row.device_api, options.gpus if on_gpu else (), vulkan_positions)
    env: dict[str, str | None] = {**_ENV, **limits}
    api_key = known.find("--api-key")
    if api_key is not None and api_key.env == _KEY_VARIABLE:
        # Other users of the node can read a command line, not an environment.
        env[_KEY_VARIABLE] = key
    else:
        argv += express(known, "api_key", key).argv
    argv += check_extra_args(options.extra_args, known)
    readiness = Readiness(f"{base_url(host, port)}/health", loading_deadline(plan.facts.weight_bytes))
    return Launch(LaunchSpec(tuple(argv), env, readiness=readiness, secrets=(key,)), tuple(notes))


def _meanings(
    plan: Plan, devices: Sequence[str], host: str, port: int, alias: str | None
) -> Iterator[tuple[str, str | None]]:
    """What has to be said, in the order of the command line."""
    options = plan.options
    yield "model", plan.facts.path
    if alias is not None:
        yield "alias", alias
    yield "host", host
    yield "port", str(port)
    # llama-server divides one context among its slots.
    yield "context", str(options.context * options.slots)
    yield "slots", str(options.slots)
    yield "separate_slots", None
    yield "batch", str(options.batch)
    yield "ubatch", str(options.ubatch)
    yield "threads", str(options.threads)
    yield "threads_batch", str(options.threads)
    yield from _placement(plan, devices)
    yield from _memory(options)
    yield from _serving(options)


def _placement(plan: Plan, devices: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    options = plan.options
    if not devices:
        yield "gpu_layers", "0"
        yield "no_device", None
        return
    yield "gpu_layers", str(options.gpu_layers)
    # By name: with layers alone, a build that finds no device goes on silently on the CPU.
    yield "device", ",".join(devices)
    if options.split_mode is not None:
        yield "split_mode", options.split_mode
    free = [need.free_bytes or 0 for need in plan.gpu_needs]
    if options.split_mode == "layer" and len(free) == len(devices) > 1 and all(free):
        # By what was free when the leases were made out; left alone, it goes by what is free when it starts.
        yield "tensor_split", ",".join(str(size // _MIB) for size in free)
    if options.main_gpu is not None:
        yield "main_gpu", str(options.main_gpu)


def _memory(options: ResolvedOptions) -> Iterator[tuple[str, str | None]]:
    if options.flash_attention is not None:
        yield ("flash_attention_on" if options.flash_attention else "flash_attention_off"), None
    if options.fit is not None:
        yield ("fit_on" if options.fit else "fit_off"), None
    if options.memory_lock:
        yield "memory_lock", None
    if options.kv_cache_type != "f16":
        yield "kv_cache_keys", options.kv_cache_type
        yield "kv_cache_values", options.kv_cache_type
    yield "prompt_cache", str(options.prompt_cache_bytes // _MIB)


def _serving(options: ResolvedOptions) -> Iterator[tuple[str, str | None]]:
    yield "continuous_batching", None
    yield "metrics", None
    yield "slot_report", None
    yield "no_page", None
    # Before the template: without it only names of built-in templates are taken.
    yield "jinja", None
    if options.chat_template is not None:
        yield "chat_template", options.chat_template
    if options.task in _TASKS:
        yield _TASKS[options.task], None
    if options.pooling is not None and options.task is ModelTask.EMBED:
        yield "pooling", options.pooling


def _plain(meaning: str, value: str) -> str:
    """``value``, unless a command line or a flag's parser could take it for something else."""
    if not value or value.startswith("-") or "\0" in value:
        raise InvalidRequest(
            f"{meaning} is {value[:80]!r}: it may not be empty, begin with '-' or hold a zero byte", meaning
        )
    if meaning == "chat_template" and len(value.encode()) > _LONGEST_TEMPLATE:
        raise InvalidRequest(
            f"chat_template has {len(value.encode())} bytes; at most {_LONGEST_TEMPLATE} are taken", meaning
        )
    if meaning == "alias" and not _ALIAS.fullmatch(value):
        raise InvalidRequest(f"{value[:80]!r} is no name for a model", meaning)
    return value
