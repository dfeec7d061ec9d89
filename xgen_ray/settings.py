"""What an operator can set, read in ``deployments.app`` and the command line only.

A Serve config (``cluster_configs/``) gives the same fields under ``args:`` of the two applications.
"""

import ipaddress
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
)
from pydantic_core import PydanticCustomError

from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import ConfigError, XgenRayError
from xgen_ray.models import parse_source
from xgen_ray.placement import ProfileSettings, option_faults
from xgen_ray.placement.types import Backend
from xgen_ray.schema import LoadRequest

CONTROL_APP = "xgen-control"
CONTROL_DEPLOYMENT = "Control"
ROUTER_APP = "xgen-router"
DEFAULT_PORT = 8000
_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104

# What engines and vendor tools may see of our environment. Everything else, tokens and keys above all,
# stays out.
ENGINE_ENV_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"}
)
ENGINE_ENV_PREFIXES = (
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "NCCL_",
    "VLLM_",
    "HIP_",
    "HSA_",
    "ROCM_",
    "ROCR_",
    "AMD_",
    "VK_",
    "GGML_",
    "LLAMA_",
    "OMP_",
)
# Of YAML's words, those that are no key even as text.
_NO_TEXT = frozenset({"tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:merge"})
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def _expand(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) else value


# A link that a page shows must not be a script.
HttpUrlText = Annotated[str, StringConstraints(pattern=r"^https?://")]
UserPath = Annotated[Path, BeforeValidator(_expand)]
# As in a node's tags, and ``cpu``.
DeviceName = Annotated[
    str, Field(pattern=r"^(gfx[0-9a-f]{3,4}|sm_[0-9]{2,3}|nvidia|amd_rdna|amd_cdna|apple_mps|cpu)$")
]


class Settings(BaseModel):
    """Base of both applications' arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys_file: UserPath | None = Field(
        None,
        description="YAML mapping of key names to keys, or to {key: ..., role: infer} for a key that may "
        "use models and look on; readable by its owner only. It is read again when it changes.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further host names by which a server without keys may be addressed."
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Web pages of other origins that may call the API, such as https://chat.example."
    )


class NodeTypeSettings(BaseModel):
    """What the cluster's autoscaler knows of a node type, in the words of Ray's cluster configuration: copy
    them from there. The tags of ``xgen-ray node --dry-run`` say what a node has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resources: Mapping[str, NonNegativeFloat] = Field(
        min_length=1, description="CPU, and tags like gfx1151: 1, as the nodes will have them."
    )
    labels: Mapping[str, str] = Field(
        default_factory=dict,
        description="Of the tags: xgen-ray/ram and, with GPUs, xgen-ray/gpu-memory at least.",
    )
    max_workers: PositiveInt = 1


class ControlSettings(Settings):
    """Arguments of the control application."""

    base_url: str = Field(
        f"http://127.0.0.1:{DEFAULT_PORT}", description="Where clients reach the router, without /v1."
    )
    models: tuple[LoadRequest, ...] = Field((), description="Models to load at start and keep loaded.")
    model_dirs: tuple[UserPath, ...] = Field(
        (), description="The only directories that local model paths may lie in."
    )
    state_dir: UserPath = Field(
        default_factory=lambda: xdg_dir("XDG_STATE_HOME", ".local/state"),
        description="Where the registry of models is kept.",
    )
    cache_dir: UserPath = Field(
        default_factory=lambda: xdg_dir("XDG_CACHE_HOME", ".cache"),
        description="Where downloads are kept, on each node.",
    )
    backend_commands: Mapping[Backend, tuple[str, ...]] = Field(
        default_factory=dict, description="Commands of engines that are not to be searched for on PATH."
    )
    vllm_rocm_gfx: tuple[str, ...] | None = Field(
        None, description="The gfx ids that vllm-rocm may run on; by default those of vLLM's documentation."
    )
    profiles: tuple[ProfileSettings, ...] = Field(
        (),
        description="Options and memory limits by device and engine, before the built-in ones; the first row "
        "that matches wins, and a model's own options before all.",
    )
    node_costs: Mapping[DeviceName, PositiveFloat] = Field(
        default_factory=dict,
        description="What an engine costs for each GPU that it has, or on the CPU, by the device's kind: "
        "gfx1151, sm_90, nvidia, amd_rdna, cpu, ... In any unit, 1 where nothing is said. A name grows "
        "where speed per cost is best.",
    )
    node_types: Mapping[str, NodeTypeSettings] = Field(
        default_factory=dict,
        description="Nodes that Ray's autoscaler may be asked to start for models without a place.",
    )
    hub_endpoint: str | None = Field(None, description="Another Hugging Face hub than the public one.")
    links: Mapping[str, HttpUrlText] = Field(
        default_factory=dict,
        description="Other pages about this fleet, by name (ray, grafana): the page leads to them.",
    )
    drain_s: PositiveFloat = Field(30.0, description="How long running requests may finish on an unload.")

    @field_validator("models")
    @classmethod
    def _make_sense(cls, models: tuple[LoadRequest, ...]) -> tuple[LoadRequest, ...]:
        """What can be seen of them without a node; ``within`` tells ``xgen_ray.serve_config`` which it is."""
        names: dict[str, int] = {}
        for place, request in enumerate(models):
            try:
                parse_source(request.model)
                name = request.loaded_as
            except XgenRayError as error:
                raise _fault((place, "model"), error.message) from None
            if name in names:
                told = f"it has the name of model {names[name]}, {name}; give it another name, or a pool"
                raise _fault((place,), told)
            names[name] = place
            for fault in option_faults(request.options):
                raise _fault((place, "options", fault.option), fault.reason)
        return models


class RouterSettings(Settings):
    """Arguments of the router application."""

    replicas: PositiveInt = Field(1, description="Routers, all on the head.")
    wait_s: PositiveFloat = Field(60.0, description="How long a request waits for a model that is loading.")
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Where traces of requests go, as OTLP over HTTP; needs the extra tracing.",
    )


def _fault(within: tuple[str | int, ...], told: str) -> PydanticCustomError:
    return PydanticCustomError("model_at_fault", "{told}", {"told": told, "within": within})


def xdg_dir(variable: str, fallback: str) -> Path:
    """Our folder below an XDG base directory."""
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "xgen-ray"


class _TextLoader(yaml.SafeLoader):
    """Leaves numbers, dates and the like as the text that they are in the file: 012345 is a key."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # declared there
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _NO_TEXT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_api_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The keys in a YAML mapping of names to keys, or to ``{key: ..., role: infer}``. Raises ConfigError,
    which never repeats a key, also for a file that others can read.
    """
    try:
        mode = path.stat().st_mode
        # What is called safe is the loader that this is one of.
        content = yaml.load(path.read_text(), _TextLoader)  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of API keys cannot be read: {error}") from error
    # For explicit tags its constructors raise whatever they like, with what they were given.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: the file of API keys is no YAML; put a key into quotes") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:o}); chmod 600 {path}")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} must be a mapping of names to keys, like 'alice: sk-...'")
    return tuple(_key_entry(path, name, entry) for name, entry in content.items())


def _key_entry(path: Path, name: object, entry: object) -> KeyEntry:
    if not isinstance(name, str):
        raise ConfigError(f"{path}: a key's name must be text; put {name!r} into quotes")
    if not isinstance(entry, dict):
        return KeyEntry(name, _key(path, name, entry))
    roles = " or ".join(Role)
    if "key" not in entry or not entry.keys() <= {"key", "role"}:
        # What is there instead may be the key: it is not repeated.
        raise ConfigError(f"{path}: {name} must be a key, or have 'key' and perhaps 'role' ({roles})")
    if entry.get("role", Role.MANAGE) not in tuple(Role):
        raise ConfigError(f"{path}: the role of {name} must be {roles}")
    return KeyEntry(name, _key(path, name, entry["key"]), Role(entry.get("role", Role.MANAGE)))


def _key(path: Path, name: str, given: object) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(
            f"{path}: {name} has no key that is text, but nothing, a truth value or a list; give it one, in "
            "quotes if it looks like one of these"
        )
    try:
        given.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path}: the key of {name} has half a character that no client can send") from None
    return given


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_reachable_routers(host: str) -> None:
    """Raises ConfigError for an address at which Serve's proxy would miss the routers: they listen where it
    does, and HAProxy looks for them at 127.0.0.1, where another's may answer. It listens on no IPv6 address.
    """
    if host not in _HOSTS:
        advice = "127.0.0.1" if is_loopback(host) else "0.0.0.0, and let a firewall keep the rest out"
        raise ConfigError(
            f"Serve cannot listen on {host or 'an empty host'}, only on 127.0.0.1 or on all IPv4 addresses. "
            f"Give {advice}"
        )


def require_keys_when_exposed(host: str, *, has_keys: bool) -> None:
    """Raises ConfigError for an address that others can reach while no key is asked for."""
    if not has_keys and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host} without API keys: whoever reaches it could use and unload the "
            "models. Give --api-key NAME=KEY, or keep the default 127.0.0.1"
        )


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` that engines and vendor tools are started with."""
    return {name: value for name, value in environ.items() if _passes(name)}


def _passes(name: str) -> bool:
    if any(word in name for word in SECRET_WORDS):
        return False
    return name in ENGINE_ENV_NAMES or name.startswith(ENGINE_ENV_PREFIXES)


def parse_keys(pairs: Iterable[str]) -> tuple[KeyEntry, ...]:
    """The keys in ``NAME=KEY`` words. Raises ConfigError, which never repeats a key."""
    keys: list[KeyEntry] = []
    for pair in pairs:
        name, separator, key = pair.partition("=")
        if not separator or not name or not key:
            raise ConfigError("an API key is given as NAME=KEY, for example --api-key alice=sk-...")
        keys.append(KeyEntry(name, key))
    return tuple(keys)
