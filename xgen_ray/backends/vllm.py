"""The command line of vLLM's server, for every kind of device: data in, ``LaunchSpec`` out.

One builder for the CUDA, ROCm and CPU rows. vLLM runs in its own Python, from its own environment, and is
never imported here. No user's string ever stands where a flag could.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from xgen_ray.backends import inside_vllm
from xgen_ray.backends.flags import KnownFlags, express
from xgen_ray.backends.launch import Launch, base_url
from xgen_ray.backends.llama_server import alias_of
from xgen_ray.backends.probe import AnswerCache
from xgen_ray.backends.visibility import visibility
from xgen_ray.backends.vllm_ask import ask_build, ask_flags
from xgen_ray.backends.vllm_build import VllmBuild, interpreter_of
from xgen_ray.backends.vllm_flags import MEANINGS, PROGRAM, check_extra_args
from xgen_ray.errors import InvalidRequest
from xgen_ray.models.types import ModelTask
from xgen_ray.placement.footprint import KV_CACHE
from xgen_ray.placement.rows import BACKENDS
from xgen_ray.placement.sizes import GIB
from xgen_ray.placement.types import BackendRow, DeviceAPI, Plan
from xgen_ray.process import LaunchSpec, Readiness, loading_deadline

# How long vLLM lets requests in flight finish when it is stopped, and how long it is waited for: ending its
# workers takes seconds more.
DRAIN_S: Final = 30
STOP_GRACE_S: Final = DRAIN_S + 15.0
# Imports, compilation and GPU graphs come on top of the weights.
_READY_BASE_S: Final = 600.0
_LONGEST_TEMPLATE: Final = 1_000_000
_KEY_VARIABLE: Final = "VLLM_API_KEY"
_GATE: Final = "xgen_ray_gate.Gate"
# Its own default is a folder beside ours, which a service that may write into its own alone cannot make.
_CACHE_VARIABLE: Final = "VLLM_CACHE_ROOT"

# What of a node's environment would make an engine another one than was planned, or open it. Every other
# VLLM_* variable is its operator's to set.
_LEFT_OUT: Final = frozenset(
    {
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        _KEY_VARIABLE,
        "VLLM_PORT",
        "VLLM_TARGET_DEVICE",
        "VLLM_USE_MODELSCOPE",
        "VLLM_SERVER_DEV_MODE",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
        "VLLM_ALLOW_INSECURE_SERIALIZATION",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
        # Of this Python, not of vLLM's.
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONSTARTUP",
        "VIRTUAL_ENV",
    }
)
_ENV: Final = MappingProxyType(
    {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is a folder on this node: whatever is missing there must not be fetched.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
)
_TASKS: Final = MappingProxyType({ModelTask.EMBED: "embed", ModelTask.RERANK: "rerank"})


class VllmLauncher:
    """Decides vLLM's command: asks the build what it understands, then builds.

    ``environment`` is ``base_env`` without what would change the engine behind the plan's back. vLLM's own
    cache is in ``cache_dir`` too, unless ``base_env`` names another folder.
    """

    def __init__(
        self, plan: Plan, *, host: str, base_env: Mapping[str, str], cache_dir: Path, alias: str | None
    ) -> None:
        self._plan = plan
        self._host = host
        self._alias = alias or alias_of(plan.facts.path)
        self._cache = AnswerCache(cache_dir / "engines")
        self._templates = AnswerCache(cache_dir / "templates")
        self._template_folder = cache_dir / "templates"
        self.environment = {_CACHE_VARIABLE: str(cache_dir / "vllm"), **vllm_environment(base_env)}

    async def __call__(self, port: int, key: str) -> Launch:
        known = await ask_flags(self._plan.command, self._asking_env(), self._cache)
        return build(
            self._plan,
            port=port,
            key=key,
            known=known,
            host=self._host,
            alias=self._alias,
            template_file=self._template_file(),
            installed=await self._installed(),
        )

    def _asking_env(self) -> dict[str, str]:
        row = BACKENDS[self._plan.backend]
        return {**self.environment, "VLLM_TARGET_DEVICE": "cpu"} if not row.needs_gpu else self.environment

    def _template_file(self) -> str | None:
        """vLLM takes a template for the path of a file first, so it gets one: a user's would be read."""
        template = self._plan.options.chat_template
        if template is None:
            return None
        if len(template.encode()) > _LONGEST_TEMPLATE:
            raise InvalidRequest(
                f"chat_template has {len(template.encode())} bytes; at most {_LONGEST_TEMPLATE} are taken",
                "chat_template",
            )
        name = f"{hashlib.sha256(template.encode()).hexdigest()}.jinja"
        self._templates.put(name, template)
        if self._templates.get(name) != template:
            raise InvalidRequest(
                f"chat_template cannot be kept in {self._template_folder}: make that folder writable",
                "chat_template",
            )
        return str(self._template_folder / name)

    async def _installed(self) -> VllmBuild | None:
        """What is to be started, as far as the row's start depends on it."""
        if BACKENDS[self._plan.backend].device_api is not DeviceAPI.CUDA:
            return None
        interpreter = interpreter_of(self._plan.command, self.environment.get("PATH", ""))
        return None if interpreter is None else await ask_build(interpreter, self.environment, self._cache)


def vllm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """``env`` without tokens, and without what would change the engine behind the plan's back."""
    return {name: value for name, value in env.items() if name not in _LEFT_OUT}


def build(
    plan: Plan,
    *,
    port: int,
    key: str,
    known: KnownFlags,
    host: str = "127.0.0.1",
    alias: str | None = None,
    template_file: str | None = None,
    installed: VllmBuild | None = None,
) -> Launch:
    """The command that runs ``plan`` on ``host:port``, opened by ``key`` alone. Starts nothing.

    ``known`` is what this build of vLLM understands; ``template_file`` has the plan's chat template;
    ``installed`` is what is known of it, where that makes a difference. Raises ``UnknownOption`` when the
    build cannot do what the plan needs, ``InvalidRequest`` for values that no command line should carry.
    """
    row = BACKENDS[plan.backend]
    argv = list(plan.command)
    if argv[-1] == "serve":
        # There the model has no name, and stands before all flags.
        argv.append(_plain("model", plan.facts.path))
    notes: list[str] = []
    for meaning, value in _meanings(plan, row, host, port, alias, template_file):
        plain = None if value is None else _plain(meaning, value)
        said = express(known, meaning, plain, table=MEANINGS, program=PROGRAM)
        argv += said.argv
        if meaning == "name" and alias is not None:
            argv += _further_names(alias, plan)
        notes += [said.note] if said.note else []
    argv += check_extra_args(plan.options.extra_args, known)
    spec = LaunchSpec(
        tuple(argv),
        _variables(plan, row, key, installed),
        # The folder that we were started in is on the path of ``python -m``.
        cwd="/",
        readiness=Readiness(
            f"{base_url(host, port)}/health",
            loading_deadline(plan.facts.weight_bytes, base_s=_READY_BASE_S),
            interval_s=0.25,
        ),
        secrets=(key,),
        stop_grace_s=STOP_GRACE_S,
        # Its workers end when told, and the streams that they compute with them.
        term_group=False,
    )
    return Launch(spec, tuple(notes), maps_model=False)


def _further_names(alias: str, plan: Plan) -> list[str]:
    """vLLM answers to its names alone: a pool is asked for as name, name@pool and name@backend."""
    name = alias.partition("@")[0]
    others = dict.fromkeys((alias, f"{name}@{plan.backend.value}"))
    return [_plain("name", other) for other in others if other != name]


def _meanings(
    plan: Plan, row: BackendRow, host: str, port: int, alias: str | None, template_file: str | None
) -> Iterator[tuple[str, str | None]]:
    """What has to be said, in the order of the command line."""
    options = plan.options
    if plan.command[-1] != "serve":
        yield "model", plan.facts.path
    if alias is not None:
        # The first of its names is the one that answers have.
        yield "name", alias.partition("@")[0]
    yield "host", host
    yield "port", str(port)
    yield "context", str(options.context)
    yield "slots", str(options.slots)
    for name in ("dtype", "quantization"):
        value = getattr(options, name)
        if value is not None:
            yield name, value
    if row.needs_gpu:
        yield "tensor_parallel_size", str(options.tensor_parallel_size)
        if options.pipeline_parallel_size > 1:
            yield "pipeline_parallel_size", str(options.pipeline_parallel_size)
        if options.gpu_memory_utilization is not None:
            yield "gpu_memory_utilization", f"{options.gpu_memory_utilization:g}"
    yield "own_workers", None
    if options.enforce_eager:
        yield "enforce_eager", None
    if template_file is not None:
        yield "chat_template", template_file
    if options.tool_parser is not None:
        yield "tool_choice", None
        yield "tool_parser", options.tool_parser
    if options.task in _TASKS:
        yield _TASKS[options.task], None
    yield "drain", str(DRAIN_S)
    yield "no_request_log", None
    yield "no_probe_log", None
    yield "no_pages", None
    yield "key_everywhere", _GATE
    yield "no_foreign_pages", None


def _variables(plan: Plan, row: BackendRow, key: str, installed: VllmBuild | None) -> dict[str, str | None]:
    """Its part of the environment. None: to be removed."""
    options = plan.options
    by_index = installed is not None and not installed.takes_uuids
    variables: dict[str, str | None] = {
        **_ENV,
        **visibility(row.device_api, options.gpus if row.needs_gpu else (), cuda_by_index=by_index),
        "OMP_NUM_THREADS": str(options.threads),
        # Other users of the node can read a command line, not an environment.
        _KEY_VARIABLE: key,
        # Where it finds the gate, and nothing else.
        "PYTHONPATH": str(Path(inside_vllm.__file__).parent),
    }
    if not row.needs_gpu:
        variables["VLLM_TARGET_DEVICE"] = "cpu"
        # The bill's own figure: left to itself it takes a part of the whole machine.
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(plan))
        # Bound threads of two engines would share cores while others idle.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if options.enforce_eager:
            # Its sampler compiles itself all the same, at the first request that samples, and the engine dies
            # where there is no C++ compiler or no Python.h.
            variables["TORCH_COMPILE_DISABLE"] = "1"
    if row.device_api is DeviceAPI.CUDA and installed is not None and not installed.flashinfer:
        variables["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return variables


def _cache_gib(plan: Plan) -> int:
    size = sum(item.size_bytes for item in plan.footprint.items if item.name == KV_CACHE and not item.on_gpu)
    return max(1, size // GIB)


def _plain(meaning: str, value: str) -> str:
    """``value``, unless a command line or a flag's parser could take it for something else."""
    if not value or value.startswith("-") or "\0" in value:
        raise InvalidRequest(
            f"{meaning} is {value[:80]!r}: it may not be empty, begin with '-' or hold a zero byte", meaning
        )
    return value
