"""What is said to vLLM, in the words of the build at hand, and what users may add to that. Pure.

vLLM's flags reach into Python: they name classes to import, plugins, files, hosts and JSON in which all of
that hides. So what users may add is listed, and everything else is the operator's.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from xgen_ray.backends.flags import Absent, KnownFlag, KnownFlags, Meaning, canonical
from xgen_ray.errors import InvalidRequest, UnknownOption

PROGRAM: Final = "vLLM"
_PARAM: Final = "extra_args"
_NAME = re.compile(r"--?[A-Za-z][\w.-]*")


def parse_help(text: str) -> KnownFlags:
    """Read argparse's ``--help=all``: ``  --dtype {auto,half}, -d {auto,half}   The type``.

    From Python 3.13 on the value is named once, after the last name: ``  --dtype, -d {auto,half}``.
    """
    by_name: dict[str, KnownFlag] = {}
    for line in text.splitlines():
        if not re.match(r"  -{1,2}[A-Za-z]", line):
            continue
        signature, _, words = line.strip().partition("  ")
        parts = re.split(r", (?=--?[A-Za-z])", signature)
        names = tuple(found[0] for part in parts if (found := _NAME.match(part)))
        value = parts[-1][len(names[-1]) :].strip() or None
        # One of several values is as good as all: ``A [A ...]``.
        value = value if value is None or value.startswith("[") else value.split(" ")[0]
        flag = KnownFlag(names, value, words.strip())
        for name in names:
            by_name.setdefault(canonical(name), flag)
    return KnownFlags(MappingProxyType(by_name))


def _row(absent: Absent, *spellings: tuple[str, ...]) -> Meaning:
    return Meaning(spellings, absent)


# Everything that is ever said to vLLM.
MEANINGS: Final[Mapping[str, Meaning]] = MappingProxyType(
    {
        "model": _row(Absent.REFUSE, ("--model", "{}")),
        "name": _row(Absent.REFUSE, ("--served-model-name", "{}")),
        "host": _row(Absent.REFUSE, ("--host", "{}")),
        "port": _row(Absent.REFUSE, ("--port", "{}")),
        "context": _row(Absent.REFUSE, ("--max-model-len", "{}")),
        "slots": _row(Absent.REFUSE, ("--max-num-seqs", "{}")),
        "dtype": _row(Absent.REFUSE, ("--dtype", "{}")),
        "quantization": _row(Absent.REFUSE, ("--quantization", "{}")),
        "tensor_parallel_size": _row(Absent.REFUSE, ("--tensor-parallel-size", "{}")),
        "pipeline_parallel_size": _row(Absent.REFUSE, ("--pipeline-parallel-size", "{}")),
        # Its workers are processes of its own: left to itself it may start a Ray where it finds one.
        "own_workers": _row(Absent.SAME, ("--distributed-executor-backend", "mp")),
        "gpu_memory_utilization": _row(Absent.REFUSE, ("--gpu-memory-utilization", "{}")),
        "enforce_eager": _row(Absent.NOTE, ("--enforce-eager",)),
        "chat_template": _row(Absent.REFUSE, ("--chat-template", "{}")),
        "tool_choice": _row(Absent.REFUSE, ("--enable-auto-tool-choice",)),
        "tool_parser": _row(Absent.REFUSE, ("--tool-call-parser", "{}")),
        "embed": _row(Absent.REFUSE, ("--runner", "pooling"), ("--task", "embed")),
        "rerank": _row(Absent.REFUSE, ("--runner", "pooling"), ("--task", "score")),
        # Without it a stop ends streams in flight with an error.
        "drain": _row(Absent.NOTE, ("--shutdown-timeout", "{}")),
        # Requests are their users' business, and our own looks would fill the log.
        "no_request_log": _row(Absent.SAME, ("--no-enable-log-requests",), ("--disable-log-requests",)),
        "no_probe_log": _row(
            Absent.SAME,
            ("--disable-access-log-for-endpoints", "/health,/metrics"),
            ("--disable-uvicorn-access-log",),
        ),
        "no_pages": _row(Absent.SAME, ("--disable-fastapi-docs",)),
        # Its own key is asked for under some prefixes only.
        "key_everywhere": _row(Absent.REFUSE, ("--middleware", "{}")),
        # Left to itself it lets every web page read its answers.
        "no_foreign_pages": _row(Absent.NOTE, ("--allowed-origins", "[]")),
    }
)

_USERS: Final = frozenset(
    name
    for names in (
        # Scheduling and cache: inside the memory that vLLM was given.
        "--enable-prefix-caching --no-enable-prefix-caching --prefix-caching-hash-algo --block-size",
        "--enable-chunked-prefill --no-enable-chunked-prefill --max-num-batched-tokens --kv-cache-dtype",
        "--long-prefill-token-threshold --async-scheduling --no-async-scheduling --scheduling-policy",
        "--stream-interval --max-num-queued-reqs --max-num-queued-tokens --disable-sliding-window",
        "--disable-cascade-attn --no-disable-cascade-attn --calculate-kv-scales",
        # Kernels and graphs.
        "--attention-backend --moe-backend --linear-backend --all2all-backend --disable-custom-all-reduce",
        "--enable-expert-parallel --optimization-level --performance-mode --cudagraph-capture-sizes",
        "--max-cudagraph-capture-size",
        # What is answered.
        "--reasoning-parser --default-chat-template-kwargs --chat-template-content-format --response-role",
        "--override-generation-config --seed --max-logprobs --logprobs-mode --enable-prompt-tokens-details",
        "--enable-force-include-usage --exclude-tools-when-tool-choice-none --tokenizer-mode --model-impl",
        # Several kinds of input.
        "--limit-mm-per-prompt --language-model-only --interleave-mm-strings --skip-mm-profiling",
        "--mm-processor-cache-gb --video-pruning-rate",
    )
    for name in names.split()
)


def _use(option: str) -> str:
    return f"use the option '{option}' instead, so that memory and placement take it into account"


_ENDPOINT = "the platform decides where an engine listens and who may ask it"
_MODEL = "the model is chosen by the request's field 'model'"
_CODE = "it makes the engine run or fetch code, which is for the node's operator alone"
_METRICS = "the platform reads the engine's figures"
_OWNED: Final[Mapping[str, str]] = MappingProxyType(
    {
        name: reason
        for names, reason in (
            (
                "--host --port --uds --api-key --root-path --ssl-keyfile --ssl-certfile --middleware",
                _ENDPOINT,
            ),
            ("--allowed-origins --headless --grpc --api-server-count -asc --config", _ENDPOINT),
            ("--model --tokenizer --served-model-name --hf-config-path --hf-overrides --load-format", _MODEL),
            ("--revision --code-revision --download-dir --lora-modules --enable-lora", _MODEL),
            ("--trust-remote-code --tool-parser-plugin --reasoning-parser-plugin --worker-cls", _CODE),
            ("--logits-processors --scheduler-cls --worker-extension-cls --io-processor-plugin", _CODE),
            ("--disable-log-stats", _METRICS),
            ("--enable-log-requests --enable-log-outputs --max-log-len", "the log would show what users ask"),
            ("--shutdown-timeout", "the platform decides how an engine is stopped"),
            ("--max-model-len", _use("context")),
            ("--max-num-seqs", _use("slots")),
            ("--dtype", _use("dtype")),
            ("--quantization -q", _use("quantization")),
            ("--tensor-parallel-size -tp", _use("tensor_parallel_size")),
            ("--pipeline-parallel-size -pp", _use("pipeline_parallel_size")),
            ("--gpu-memory-utilization --kv-cache-memory-bytes", _use("gpu_memory_utilization")),
            ("--enforce-eager --no-enforce-eager", _use("enforce_eager")),
            ("--chat-template", _use("chat_template")),
            ("--enable-auto-tool-choice --tool-call-parser", _use("tool_parser")),
            ("--runner --convert --task", _use("task")),
            ("--device-ids", _use("gpus")),
            ("--cpu-offload-gb --kv-offloading-size", "memory was counted without it"),
        )
        for name in names.split()
    }
)
_NOT_LISTED: Final = "it is not among the flags that users may set; the node's operator could"
# A word, a number or a list of them; nothing that is a path.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:+-]{1,200}")
_LONGEST_JSON: Final = 4000


def check_extra_args(args: Sequence[str], known: KnownFlags) -> tuple[str, ...]:
    """``args`` as they may follow the platform's own; raises with the reason for the first that may not.

    Raises ``UnknownOption`` for a flag that this build does not list, ``InvalidRequest`` for one that is
    not the user's to set.
    """
    rest = list(args)
    while rest:
        written, equals, value = rest.pop(0).partition("=")
        flag = _flag(written, known)
        values = [value] if equals else []
        if flag.value is None and equals:
            raise InvalidRequest(f"{written} takes no value", _PARAM)
        while flag.value is not None and not equals and rest and not _is_flag(rest[0]):
            values.append(rest.pop(0))
        if flag.value is not None and not values:
            raise InvalidRequest(f"{written} needs a value, named {flag.value}", _PARAM)
        if flag.value is None and rest and not _is_flag(rest[0]):
            raise InvalidRequest(f"{rest[0][:80]!r} is not a flag: each begins with '-'", _PARAM)
        for each in values:
            _check_value(written, flag, each)
    return tuple(args)


def _flag(written: str, known: KnownFlags) -> KnownFlag:
    if not _is_flag(written) or "\0" in written:
        raise InvalidRequest(
            f"{written[:80]!r} is not a flag: each begins with '-' and comes before its value", _PARAM
        )
    name = canonical(written)
    flag = known.find(name)
    if name in _USERS and flag is not None:
        return flag
    # argparse takes the beginning of a flag for the flag; here only whole names count.
    if name in _OWNED or flag is not None:
        raise InvalidRequest(f"{name} cannot be set by extra_args: {_OWNED.get(name, _NOT_LISTED)}", _PARAM)
    close = difflib.get_close_matches(name, _USERS & known.by_name.keys(), n=1)
    hint = f"; did you mean {close[0]}?" if close else " and none like it"
    raise UnknownOption(f"this build of {PROGRAM} has no {written}{hint}", _PARAM)


def _is_flag(word: str) -> bool:
    return re.match(r"--?[A-Za-z]", word) is not None


def _check_value(name: str, flag: KnownFlag, value: str) -> None:
    if value.startswith(("{", "[")):
        _check_json(name, value)
    elif not _PLAIN.fullmatch(value):
        raise InvalidRequest(
            f"{name} may be a word, a number or JSON without paths, not {value[:80]!r}", _PARAM
        )
    elif not flag.accepts(value):
        raise InvalidRequest(f"{name} takes {flag.value}, not {value[:80]!r}", _PARAM)


def _check_json(name: str, value: str) -> None:
    try:
        if len(value) > _LONGEST_JSON:
            raise ValueError(f"it has {len(value)} characters; at most {_LONGEST_JSON} are taken")
        json.loads(value)
    except ValueError as error:
        raise InvalidRequest(f"the value of {name} is no JSON: {error}", _PARAM) from None
