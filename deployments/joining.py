"""Before ``ray start``: the address, the token, and whether this node and the head fit together.

Ray finds all of this out by itself, after half a minute and in a stack trace.
"""

import asyncio
import errno
import ipaddress
import json
import os
import platform
import secrets
import socket
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from xgen_ray.errors import ConfigError, HeadUnreachable, NodeNotStarted, Unauthorized
from xgen_ray.process import ChildProcess, LaunchSpec

LOOPBACK: Final = "127.0.0.1"
DEFAULT_HEAD_PORT: Final = 6379
CONNECT_DEADLINE_S: Final = 10.0
# A head answers within a second; what is no head is asked for ever.
ANSWER_DEADLINE_S: Final = 15.0
# What Ray itself accepts.
_PORTS: Final = range(1024, 65536)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a cluster's head is: a host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """The versions that a cluster was started with; every node must have the same."""

    ray: str
    python: str


def parse_address(text: str) -> Address:
    """``HOST:PORT``, or ``HOST`` alone with Ray's usual port. Raises ConfigError."""
    bracketed, bracket, rest = text.removeprefix("[").partition("]")
    host, port = (bracketed, rest) if bracket else ("", "")
    if not bracket:
        host, colon, port = text.rpartition(":")
        host, port = (host, f":{port}") if colon else (text, "")
    number = port.removeprefix(":") or str(DEFAULT_HEAD_PORT)
    if not host or (":" in host and not bracket) or not number.isdecimal() or int(number) not in _PORTS:
        raise ConfigError(
            f"{text!r} is no address of a head; give HOST:PORT with a port from {_PORTS.start} to "
            f"{_PORTS.stop - 1}, as in 10.0.0.1:{DEFAULT_HEAD_PORT}"
        )
    return Address(host, int(number))


def way_to(address: Address) -> str:
    """This machine's own address on the way to a head. Sends nothing. Raises HeadUnreachable."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
            probe.connect(found[4])
            own: str = probe.getsockname()[0]
            return own
    except socket.gaierror as error:
        raise _no_such_name(address, error) from None
    except OSError as error:
        raise HeadUnreachable(_why_no_connection(address, error)) from None


def join_address(text: str) -> Address:
    """The address of a head that other nodes can join. Raises ConfigError."""
    address = parse_address(text)
    if address.host in ("localhost", LOOPBACK, "::1"):
        raise ConfigError(
            f"{address} is this machine alone, and a head there takes no nodes. Give the address that the "
            "head was started with: its --node-ip-address"
        )
    return address


async def reach(address: Address, deadline_s: float = CONNECT_DEADLINE_S) -> None:
    """Connect to it, once. Raises HeadUnreachable with the reason."""
    try:
        async with asyncio.timeout(deadline_s):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except TimeoutError:
        raise HeadUnreachable(
            f"{address} did not answer within {deadline_s:g} s. Check the address; if it is right, a "
            f"firewall keeps port {address.port} shut"
        ) from None
    except socket.gaierror as error:
        raise _no_such_name(address, error) from None
    except OSError as error:
        raise HeadUnreachable(_why_no_connection(address, error)) from None
    writer.close()


def _no_such_name(address: Address, error: OSError) -> HeadUnreachable:
    return HeadUnreachable(
        f"the name {address.host} cannot be resolved ({error.strerror}). Give the head's IP address"
    )


def _why_no_connection(address: Address, error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return (
            f"nothing listens at {address}. Start the head there first: "
            f"xgen-ray node --head --node-ip-address {address.host} --port {address.port}"
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return f"no route to {address} ({reason}). Check the address, and this machine's network and routes"


async def ask_head(
    address: Address, env: Mapping[str, str], deadline_s: float = ANSWER_DEADLINE_S
) -> HeadFacts:
    """The head's versions. ``env`` says how Ray finds the token, and passes it on to nobody else.

    Raises Unauthorized when the head takes another token, HeadUnreachable when whatever answers there is
    no head, ConfigError for a head that anybody may command.
    """
    trusted, stranger = await asyncio.gather(
        _ask(address, env, "token", deadline_s), _ask(address, env, "disabled", deadline_s)
    )
    if stranger is not None and "ray_version" in stranger:
        raise ConfigError(
            f"the cluster at {address} asks for no token: whoever reaches it could run programs on this "
            "node. Start its head with xgen-ray node --head, or with RAY_AUTH_MODE=token"
        )
    if trusted is None:
        raise HeadUnreachable(
            f"something listens at {address}, but it does not answer as the head of a Ray cluster does. "
            "Give the address and port that the head printed when it was started"
        )
    if trusted.get("refused"):
        raise Unauthorized(
            f"the head at {address} refuses this node's token, which is not the cluster's. Copy the token "
            "file from the head, by default ~/.ray/auth_token, to this machine"
        )
    return HeadFacts(str(trusted.get("ray_version", "")), str(trusted.get("python_version", "")))


async def _ask(
    address: Address, env: Mapping[str, str], mode: str, deadline_s: float
) -> Mapping[str, Any] | None:
    """None when there is no answer, whatever the reason."""
    command = (sys.executable, "-P", "-m", "deployments.head_facts", str(address))
    spec = LaunchSpec(command, {"RAY_AUTH_MODE": mode}, stop_grace_s=0)
    try:
        async with ChildProcess(spec, base_env=env) as child, asyncio.timeout(deadline_s):
            await child.wait()
    except TimeoutError:
        return None
    for line in child.logs.tail():
        if line.startswith("{"):
            answer: Mapping[str, Any] = json.loads(line)
            return answer
    return None


def require_same_versions(address: Address, head: HeadFacts, *, match: str = "patch") -> None:
    """Raises NodeNotStarted: an upgrade of the one or the other mends it. ``match`` is how exact Python's
    version must be for Ray: patch or minor.
    """
    own = HeadFacts(version("ray"), platform.python_version())
    if head.ray and head.ray != own.ray:
        raise NodeNotStarted(
            f"the head at {address} runs Ray {head.ray}, this node Ray {own.ray}, and all nodes of a "
            "cluster need the same. Install the same version of xgen-ray on both, which brings its Ray along"
        )
    parts = 2 if match == "minor" else 3
    if head.python and head.python.split(".")[:parts] != own.python.split(".")[:parts]:
        raise NodeNotStarted(
            f"the head at {address} runs Python {head.python}, this node Python {own.python}, and Ray "
            f"needs the same on all nodes. Install xgen-ray here with Python {head.python}"
        )


def own_address(text: str, port: int | None = None) -> str:
    """This node's address as Ray takes it. Raises ConfigError when ``text`` can be no machine's, or when
    ``port`` is taken there; NodeNotStarted when this machine does not have it, or not yet.
    """
    host = LOOPBACK if text in ("localhost", "::1") else text
    try:
        unspecific = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        unspecific = True
    if unspecific:
        raise ConfigError(
            f"{text} cannot be this node's address: the others must find it by that. Give one of this "
            "machine's own, as `ip address` lists them"
        )
    _require_free(host, port)
    return host


def _require_free(host: str, port: int | None) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port or 0))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken by another program, perhaps by another cluster's head. "
                "Stop that, or give another --port"
            ) from None
        missing = error.errno == errno.EADDRNOTAVAIL
        raise (NodeNotStarted if missing else ConfigError)(
            f"{host} cannot be this node's address ({error.strerror}). Give one of this machine's own, as "
            "`ip address` lists them"
        ) from None


def with_token(environ: Mapping[str, str], given: Path | None) -> dict[str, str]:
    """``environ`` in which Ray finds the token in the file that was given, if one was."""
    environment = dict(environ)
    if given is not None:
        environment.pop("RAY_AUTH_TOKEN", None)
        environment["RAY_AUTH_TOKEN_PATH"] = str(given)
    return environment


def token_path(given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Where Ray reads the token, in Ray's own order; None when it is in the environment itself."""
    if given is not None:
        return given
    if environ.get("RAY_AUTH_TOKEN"):
        return None
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path.home() / ".ray" / "auth_token"


def make_token(path: Path) -> bool:
    """Make a token where there is none, for its owner only; says whether it was made. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    except OSError as error:
        raise ConfigError(
            f"no token can be made at {path} ({error.strerror}). Make the folder writable, or put a token "
            "there: openssl rand -hex 32"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    return True


def require_token(path: Path) -> str | None:
    """Raises Unauthorized when there is no token. Returns a warning when others can read it."""
    try:
        mode = path.stat().st_mode
        empty = not path.read_text().strip()
    except OSError as error:
        raise Unauthorized(
            f"no token at {path} ({error.strerror}). Copy the head's token file to this place, readable by "
            "you only, or name it with --token-file"
        ) from None
    if empty:
        raise Unauthorized(f"the token file {path} is empty. Copy the head's token file to this place")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"others can read the token in {path} (mode {mode & 0o777:o}): chmod 600 {path}"
    return None
