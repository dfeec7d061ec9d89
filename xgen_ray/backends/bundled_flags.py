"""The flags of the bundled llama-server: names, values and what each sets in llama.cpp's parameters.

One row a flag; ``--help``, parsing and refusals all read the same rows. Names, values and messages are
those of llama.cpp's own ``llama-server``, so that one command line starts either.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# llama.cpp's own parameter block, as the library wraps it; it has no types of its own.
Params = Any
Apply = Callable[[Params, str], None]

_KV_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_LOAD_MODES: Final = {
    "auto": "AUTO",
    "none": "NONE",
    "mmap": "MMAP",
    "mlock": "MLOCK",
    "mmap+mlock": "MMAP_MLOCK",
    "dio": "DIRECT_IO",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """``value`` is how ``--help`` names what follows the flag; None: nothing does. ``no`` are the names
    that turn it off. ``env`` gives the value when the flag is absent.
    """

    names: tuple[str, ...]
    value: str | None
    text: str
    apply: Apply
    no: tuple[str, ...] = ()
    env: str | None = None


class BadFlag(ValueError):
    """A command line that is refused; the text is what the program says."""


def _field(name: str, convert: Callable[[str], object]) -> Apply:
    def apply(params: Params, value: str) -> None:
        setattr(params, name, convert(value))

    return apply


def _number(name: str) -> Apply:
    return _field(name, int)


def _switch(name: str) -> Apply:
    return _field(name, lambda value: value == "on")


def _unsigned(value: str) -> int:
    """As C++ stores it: -1 is the largest number, which stands for "a new one each time"."""
    return int(value) & 0xFFFFFFFF


def _sampling(name: str, convert: Callable[[str], object]) -> Apply:
    def apply(params: Params, value: str) -> None:
        setattr(params.sampling, name, convert(value))

    return apply


def _member(name: str, enum: str, prefix: str, members: dict[str, str]) -> Apply:
    """Sets ``name`` to the member of the library's ``enum`` that ``members`` has for the value."""

    def apply(params: Params, value: str) -> None:
        import xllamacpp

        if value not in members:
            raise ValueError("invalid value")
        setattr(params, name, getattr(getattr(xllamacpp, enum), prefix + members[value]))

    return apply


def _same(*values: str) -> dict[str, str]:
    return {value: value.upper() for value in values}


def _model(params: Params, value: str) -> None:
    params.model.path = value


def _threads(attribute: str) -> Apply:
    def apply(params: Params, value: str) -> None:
        getattr(params, attribute).n_threads = int(value)

    return apply


def _alias(params: Params, value: str) -> None:
    params.model_alias = {name.strip() for name in value.split(",") if name.strip()}


def _keys(params: Params, value: str) -> None:
    params.api_keys = [key for key in value.split(",") if key]


def _gpu_layers(params: Params, value: str) -> None:
    params.n_gpu_layers = {"auto": -1, "all": -2}[value] if value in ("auto", "all") else int(value)


def _device(params: Params, value: str) -> None:
    if value != "none":
        raise ValueError(f"invalid device: {value}")
    params.n_gpu_layers = 0


def _tensor_split(params: Params, value: str) -> None:
    parts = [float(part) for part in re.split(r"[,/]+", value)]
    if len(parts) > len(params.tensor_split):
        raise ValueError(f"got {len(parts)} values, at most {len(params.tensor_split)} are taken")
    params.tensor_split = parts + [0.0] * (len(params.tensor_split) - len(parts))


def _rerank(params: Params, _: str) -> None:
    import xllamacpp

    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def _template_kwargs(params: Params, value: str) -> None:
    given = json.loads(value)
    if not isinstance(given, dict):
        raise TypeError("expected a JSON object")
    params.default_template_kwargs = {key: json.dumps(item) for key, item in given.items()}


def _template_file(params: Params, value: str) -> None:
    params.chat_template = Path(value).read_text(encoding="utf-8")


_POOLING = _member(
    "pooling_type",
    "llama_pooling_type",
    "LLAMA_POOLING_TYPE_",
    _same("none", "mean", "cls", "last", "rank"),
)
_FLASH = _member(
    "flash_attn_type",
    "llama_flash_attn_type",
    "LLAMA_FLASH_ATTN_TYPE_",
    {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"},
)
_SPLIT = _member(
    "split_mode", "llama_split_mode", "LLAMA_SPLIT_MODE_", _same("none", "layer", "row", "tensor")
)
_REASONING = _member(
    "reasoning_format",
    "common_reasoning_format",
    "COMMON_REASONING_FORMAT_",
    {"none": "NONE", "auto": "AUTO", "deepseek": "DEEPSEEK", "deepseek-legacy": "DEEPSEEK_LEGACY"},
)


def _kv(name: str) -> Apply:
    return _member(name, "ggml_type", "GGML_TYPE_", _same(*_KV_TYPES))


FLAGS: Final = (
    Flag(("-m", "--model"), "FNAME", "model path to load", _model),
    Flag(("-a", "--alias"), "STRING", "model name aliases, comma-separated", _alias),
    Flag(("--host",), "HOST", "ip address to listen", _field("hostnames", lambda value: [value])),
    Flag(("--port",), "PORT", "port to listen (default: 8080)", _number("port")),
    Flag(
        ("--api-key",),
        "KEY",
        "API keys, comma-separated (default: none)",
        _keys,
        env="LLAMA_API_KEY",
    ),
    Flag(("-t", "--threads"), "N", "CPU threads for generation", _threads("cpuparams")),
    Flag(("-tb", "--threads-batch"), "N", "CPU threads for prompts", _threads("cpuparams_batch")),
    Flag(("--threads-http",), "N", "threads that answer HTTP requests", _number("n_threads_http")),
    Flag(("-c", "--ctx-size"), "N", "context of all slots together (0: the model's)", _number("n_ctx")),
    Flag(("-np", "--parallel"), "N", "number of server slots", _number("n_parallel")),
    Flag(("-n", "--predict", "--n-predict"), "N", "tokens to predict at most", _number("n_predict")),
    Flag(("-b", "--batch-size"), "N", "logical maximum batch size", _number("n_batch")),
    Flag(("-ub", "--ubatch-size"), "N", "physical maximum batch size", _number("n_ubatch")),
    Flag(("-fa", "--flash-attn"), "[on|off|auto]", "flash attention", _FLASH),
    Flag(("-fit", "--fit"), "[on|off]", "adjust unset arguments to the memory", _switch("fit_params")),
    Flag(("-ctk", "--cache-type-k"), "TYPE", "KV cache type of keys", _kv("cache_type_k")),
    Flag(("-ctv", "--cache-type-v"), "TYPE", "KV cache type of values", _kv("cache_type_v")),
    Flag(
        ("-lm", "--load-mode"),
        "MODE",
        "auto, none, mmap, mlock, mmap+mlock or dio",
        _member("load_mode", "llama_load_mode", "LLAMA_LOAD_MODE_", _LOAD_MODES),
    ),
    Flag(("-dev", "--device"), "<dev1,dev2,..>", "devices to use (none = don't offload)", _device),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), "N", "layers to store in VRAM", _gpu_layers),
    Flag(("-sm", "--split-mode"), "{none,layer,row,tensor}", "how to split over GPUs", _SPLIT),
    Flag(("-ts", "--tensor-split"), "N0,N1,N2,...", "proportions of the GPUs", _tensor_split),
    Flag(("-mg", "--main-gpu"), "INDEX", "the GPU to use with split-mode none", _number("main_gpu")),
    Flag(
        ("-kvu", "--kv-unified"),
        None,
        "one KV buffer shared by all slots",
        _switch("kv_unified"),
        no=("-no-kvu", "--no-kv-unified"),
    ),
    Flag(
        ("-cb", "--cont-batching"),
        None,
        "continuous batching",
        _switch("cont_batching"),
        no=("-nocb", "--no-cont-batching"),
    ),
    Flag(("-cram", "--cache-ram"), "N", "prompt cache in MiB (0: none)", _number("cache_ram_mib")),
    Flag(("--cache-prompt",), None, "prompt caching", _switch("cache_prompt"), no=("--no-cache-prompt",)),
    Flag(("--cache-reuse",), "N", "least chunk to reuse by shifting", _number("n_cache_reuse")),
    Flag(("--swa-full",), None, "full-size sliding-window cache", _switch("swa_full")),
    Flag(("--context-shift",), None, "shift when full", _switch("ctx_shift"), no=("--no-context-shift",)),
    Flag(("--warmup",), None, "warm up with an empty run", _switch("warmup"), no=("--no-warmup",)),
    Flag(("--embedding", "--embeddings"), None, "only serve embeddings", _switch("embedding")),
    Flag(("--rerank", "--reranking"), None, "serve the reranking endpoint", _rerank),
    Flag(("--pooling",), "{none,mean,cls,last,rank}", "pooling of embeddings", _POOLING),
    Flag(("--embd-normalize",), "N", "normalisation of embeddings", _number("embd_normalize")),
    Flag(("--metrics",), None, "Prometheus metrics endpoint", _switch("endpoint_metrics")),
    Flag(("--slots",), None, "slots monitoring endpoint", _switch("endpoint_slots"), no=("--no-slots",)),
    Flag(("--ui", "--webui"), None, "the Web UI", _switch("ui"), no=("--no-ui", "--no-webui")),
    Flag(("--jinja",), None, "jinja templates for chat", _switch("use_jinja"), no=("--no-jinja",)),
    Flag(("--chat-template",), "JINJA_TEMPLATE", "custom chat template", _field("chat_template", str)),
    Flag(("--chat-template-file",), "JINJA_TEMPLATE_FILE", "file of a custom chat template", _template_file),
    Flag(("--chat-template-kwargs",), "STRING", "JSON object of template parameters", _template_kwargs),
    Flag(("--reasoning-format",), "FORMAT", "none, auto, deepseek or deepseek-legacy", _REASONING),
    Flag(
        ("--reasoning-budget",),
        "N",
        "tokens for thinking",
        _sampling("reasoning_budget_tokens", int),
    ),
    Flag(
        ("-sps", "--slot-prompt-similarity"),
        "SIMILARITY",
        "how alike a prompt must be to take a slot",
        _field("slot_prompt_similarity", float),
    ),
    Flag(("--sse-ping-interval",), "N", "seconds between pings (-1: none)", _number("sse_ping_interval")),
    Flag(("-s", "--seed"), "SEED", "RNG seed", _sampling("seed", _unsigned)),
    Flag(("--temp", "--temperature"), "N", "temperature", _sampling("temp", float)),
    Flag(("--top-k",), "N", "top-k sampling", _sampling("top_k", int)),
    Flag(("--top-p",), "N", "top-p sampling", _sampling("top_p", float)),
    Flag(("--min-p",), "N", "min-p sampling", _sampling("min_p", float)),
    Flag(("-lv", "--verbosity", "--log-verbosity"), "N", "0 to 5, the higher the more", _number("verbosity")),
)


def parse(argv: Sequence[str]) -> list[tuple[Flag, str, str]]:
    """Every flag of ``argv`` as (row, name as written, value); on/off for flags without one.

    Raises ``BadFlag`` with llama.cpp's words.
    """
    on = {name: flag for flag in FLAGS for name in flag.names}
    off = {name: flag for flag in FLAGS for name in flag.no}
    parsed: list[tuple[Flag, str, str]] = []
    rest = iter(argv)
    for written in rest:
        # As llama.cpp does: --ctx_size is --ctx-size.
        name = written.replace("_", "-") if written.startswith("--") else written
        if name in off:
            parsed.append((off[name], written, "off"))
        elif name not in on:
            raise BadFlag(f"error: invalid argument: {written}")
        elif on[name].value is None:
            parsed.append((on[name], written, "on"))
        else:
            value = next(rest, None)
            if value is None:
                raise BadFlag(f'error while handling argument "{written}": expected value for argument')
            parsed.append((on[name], written, value))
    return parsed


def apply(params: Params, flag: Flag, written: str, value: str) -> None:
    """Set what ``flag`` sets; a value that it does not take raises ``BadFlag``."""
    try:
        flag.apply(params, value)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise BadFlag(f'error while handling argument "{written}": {error}') from error


def help_text() -> str:
    """``--help`` in llama.cpp's layout."""
    lines = ["----- common params -----", ""]
    builtin = [("-h, --help, --usage", "print usage and exit"), ("--version", "show version and build info")]
    builtin.append(("--list-devices", "print list of available devices and exit"))
    rows = [
        (", ".join((*flag.names, *flag.no)) + (f" {flag.value}" if flag.value else ""), flag)
        for flag in FLAGS
    ]
    for signature, text in builtin:
        lines.append(f"{signature:<40}{text}")
    for signature, flag in rows:
        lines += [f"{signature:<40}{flag.text}"] if len(signature) < 39 else [signature, " " * 40 + flag.text]
        if flag.env:
            lines.append(" " * 40 + f"(env: {flag.env})")
    return "\n".join(lines)
