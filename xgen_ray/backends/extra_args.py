"""Which further llama-server arguments a user may add, and why not the others.

Users are not the operator: an argument that names a file, a URL, an address, a key or a tool could read
the node's disk, open a port or run commands. So only flags that the build itself lists are let through,
and of those none that the platform decides, and none that look like touching files or the network.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from xgen_ray.backends.flags import KnownFlag, KnownFlags, canonical
from xgen_ray.errors import InvalidRequest, UnknownOption

_FILES = "it reads or writes files on the node, which is for its operator alone"
_NETWORK = "it fetches from or talks to the network, which is for the node's operator alone"
_SECURITY = "it gives requests power over the node"
_ENDPOINT = "the platform decides where an engine listens and who may ask it"
_MODEL = "the model is chosen by the request's field 'model'"
_MEMORY = "memory was counted without it"
_SHARES = (
    "it can put more on a GPU than is leased of it; use the options 'gpus' and 'split_mode' instead, which "
    "memory and placement take into account"
)
_PRIORITY = "priorities between processes are for the node's operator alone"
_ENDS = "it makes the program print something and end"


def _use(option: str) -> str:
    return f"use the option '{option}' instead, so that memory and placement take it into account"


_GROUPS: Final[tuple[tuple[str, str], ...]] = (
    ("-m --model -a --alias --tags", _MODEL),
    ("-mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file -hft --hf-token", _MODEL),
    ("-hfv -hfrv --hf-repo-v -hffv --hf-file-v --models-max --models-autoload --no-models-autoload", _MODEL),
    ("--models-dir --models-preset", _FILES),
    ("--host --port --reuse-port --path --api-prefix --api-key --api-key-file", _ENDPOINT),
    ("--ssl-key-file --ssl-cert-file --cors-origins --cors-methods --cors-headers", _ENDPOINT),
    ("--cors-credentials --no-cors-credentials --timeout -to --metrics --slots --no-slots", _ENDPOINT),
    (
        "--ui --webui --no-ui --no-webui --ui-config --webui-config --ui-config-file --webui-config-file",
        _ENDPOINT,
    ),
    ("--ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy --props", _SECURITY),
    ("--tools --tools-runtime --mcp-servers-config --mcp-servers-json", _SECURITY),
    ("-ag --agent -no-ag --no-agent", _SECURITY),
    ("--rpc", _NETWORK),
    ("--log-file --log-disable --log-prompts-dir --slot-save-path --media-path --prompt-cache", _FILES),
    ("--lora --lora-scaled --lora-base --control-vector --control-vector-scaled", _FILES),
    ("-mm --mmproj -mmu --mmproj-url --mmproj-auto --no-mmproj --no-mmproj-auto", _FILES),
    ("-md --model-draft --spec-draft-model -mv --model-vocoder", _FILES),
    ("-hfd -hfrd --hf-repo-draft --spec-draft-hf", _NETWORK),
    ("--grammar-file -jf --json-schema-file --chat-template-file", _FILES),
    ("-lcs --lookup-cache-static -lcd --lookup-cache-dynamic", _FILES),
    ("-h --help --usage --version -cl --cache-list --completion-bash --list-devices", _ENDS),
    ("-kvu --kv-unified -no-kvu --no-kv-unified -np-auto", _MEMORY),
    (
        "--prio --prio-batch --spec-draft-prio --prio-draft --spec-draft-prio-batch --prio-batch-draft",
        _PRIORITY,
    ),
    ("-v --verbose --log-verbose -lv --verbosity --log-verbosity", "the log would show what users ask"),
    ("--sleep-idle-seconds", "the platform decides when a model is unloaded"),
    ("-c --ctx-size", _use("context")),
    ("-np --parallel", _use("slots")),
    ("-b --batch-size", _use("batch")),
    ("-ub --ubatch-size", _use("ubatch")),
    ("-t --threads -tb --threads-batch", _use("threads")),
    ("-ngl --gpu-layers --n-gpu-layers", _use("gpu_layers")),
    ("-dev --device --spec-draft-device -devd --device-draft", _use("gpus")),
    ("-sm --split-mode", _use("split_mode")),
    ("-ts --tensor-split", _SHARES),
    ("-mg --main-gpu", _use("main_gpu")),
    ("-fa --flash-attn", _use("flash_attention")),
    ("-fit --fit -fitt --fit-target -fitc --fit-ctx", _use("fit")),
    ("--mlock --mmap --no-mmap -dio --direct-io -ndio --no-direct-io -lm --load-mode", _use("memory_lock")),
    ("-ctk --cache-type-k -ctv --cache-type-v", _use("kv_cache_type")),
    ("--chat-template", _use("chat_template")),
    ("--embedding --embeddings --rerank --reranking", _use("task")),
    ("-cram --cache-ram", "the platform sizes this cache by the node's free memory"),
)

OWNED: Final[Mapping[str, str]] = MappingProxyType(
    {name: reason for names, reason in _GROUPS for name in names.split()}
)

# For flags that are newer than the table: how llama.cpp names values and describes effects.
_FILE_VALUE = re.compile(r"FNAME|FILE|PATH|DIR|\bpath\b", re.IGNORECASE)
_NETWORK_VALUE = re.compile(r"URL|REPO|SERVERS|HOST|TOKEN\b", re.IGNORECASE)
_NETWORK_TEXT = re.compile(r"download|fetch", re.IGNORECASE)
_ENDS_TEXT = re.compile(r"\band exit\b", re.IGNORECASE)
_DANGEROUS_TEXT = re.compile(r"untrusted environment|do not enable", re.IGNORECASE)
_SUSPECT_NAME = re.compile(
    r"(?:^|-)(?:file|path|dir|url|hf|repo|mcp|tools?|agent|ssl|api|cors|lora|mmproj|log-file|model)(?:-|$)"
)
# A tensor may be moved to the host; to another GPU it would go past that GPU's lease.
_TENSORS_TO_CPU = re.compile(r"[^=,]+=CPU(?:,[^=,]+=CPU)*")
_TENSOR_FLAGS = frozenset({"--override-tensor", "--override-tensor-draft"})
_NUMBER = re.compile(r"-\d+(?:\.\d+)?")
_PARAM: Final = "extra_args"


def check_extra_args(args: Sequence[str], known: KnownFlags) -> tuple[str, ...]:
    """``args`` as they may follow the platform's own; raises with the reason for the first that may not.

    Raises ``UnknownOption`` for a flag that this build does not list, ``InvalidRequest`` for one that is
    not the user's to set.
    """
    rest = list(args)
    while rest:
        name = rest.pop(0)
        flag = _flag(name, known)
        if len(rest) < flag.arity:
            raise InvalidRequest(f"{name} needs {flag.arity} more argument(s), named {flag.value}", _PARAM)
        for value in rest[: flag.arity]:
            _check_value(name, flag, value)
        del rest[: flag.arity]
    return tuple(args)


def _flag(name: str, known: KnownFlags) -> KnownFlag:
    if not name.startswith("-") or "\0" in name:
        raise InvalidRequest(
            f"{name[:80]!r} is not a flag: each begins with '-' and comes before its value", _PARAM
        )
    plain = canonical(name.split("=", 1)[0])
    reason = _refusal(plain, known.find(plain))
    if reason is not None:
        raise InvalidRequest(f"{plain} cannot be set by extra_args: {reason}", _PARAM)
    if "=" in name:
        raise InvalidRequest(f"llama-server takes {plain} and its value as two arguments", _PARAM)
    flag = known.find(plain)
    if flag is None:
        raise UnknownOption(f"this build of llama-server has no {name}{_nearest(plain, known)}", _PARAM)
    return flag


def _refusal(name: str, flag: KnownFlag | None) -> str | None:
    """Why a flag is not the user's, under whichever of its names."""
    names = (name,) if flag is None else (name, *flag.names)
    for each in names:
        if canonical(each) in OWNED:
            return OWNED[canonical(each)]
    if flag is None:
        return None
    value, text = flag.value or "", flag.text
    if _ENDS_TEXT.search(text):
        return _ENDS
    if _DANGEROUS_TEXT.search(text):
        return _SECURITY
    if _NETWORK_VALUE.search(value) or _NETWORK_TEXT.search(text):
        return _NETWORK
    if _FILE_VALUE.search(value):
        return _FILES
    if any(_SUSPECT_NAME.search(each) for each in flag.names):
        return "its name speaks of files, addresses or tools, which are for the node's operator alone"
    return None


def _check_value(name: str, flag: KnownFlag, value: str) -> None:
    if "\0" in value:
        raise InvalidRequest(f"the value of {name} has a zero byte in it", _PARAM)
    if value.startswith("-") and not _NUMBER.fullmatch(value):
        raise InvalidRequest(
            f"the value of {name} is missing: {value[:80]!r} looks like another flag", _PARAM
        )
    if _TENSOR_FLAGS & set(flag.names) and not _TENSORS_TO_CPU.fullmatch(value):
        raise InvalidRequest(
            f"{name} may only move tensors to the host: NAME=CPU, not {value[:80]!r}", _PARAM
        )
    if not flag.accepts(value):
        raise InvalidRequest(f"{name} takes {flag.value}, not {value[:80]!r}", _PARAM)


def _nearest(name: str, known: KnownFlags) -> str:
    close = difflib.get_close_matches(name, known.by_name, n=10)
    allowed = [other for other in close if _refusal(other, known.find(other)) is None]
    return f"; did you mean {allowed[0]}?" if allowed else " and none like it"
