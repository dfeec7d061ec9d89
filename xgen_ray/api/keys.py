"""API keys: who may call, without the keys themselves staying in memory or in a log."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import ConfigError, Unauthorized

# What an unkeyed server calls its callers in the log.
ANONYMOUS: Final = "anonymous"

_MISSING = (
    "This server needs an API key: send 'Authorization: Bearer <key>' (or 'x-api-key: <key>'); "
    "with an OpenAI client, set api_key."
)
_WRONG = (
    "The API key that was sent is not one of this server's keys. Check the key, or ask the operator for one."
)


class Caller(NamedTuple):
    """Who sent a request: the name of the key, and what it is good for."""

    name: str
    role: Role


class ApiKeys:
    """Named keys, kept as digests. Without any, the server is open to whoever can reach it.

    Those ``of_file`` can be replaced, from any thread; ``keys`` stay.
    """

    __slots__ = ("_digests", "_lasting")

    def __init__(
        self, keys: Iterable[KeyEntry | tuple[str, str]] = (), of_file: Iterable[KeyEntry] = ()
    ) -> None:
        self._lasting = _digests(keys)
        self._digests = (*self._lasting, *_digests(of_file))

    def replace(self, of_file: Iterable[KeyEntry]) -> None:
        """Take these in place of those of the file, all at once. Raises ConfigError and changes nothing."""
        self._digests = (*self._lasting, *_digests(of_file))

    def __repr__(self) -> str:
        return f"ApiKeys({[caller.name for caller, _ in self._digests]})"

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def admit(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the caller's key, or Unauthorized. ``headers`` have lower-case names."""
        return self.identify(headers).name

    def identify(self, headers: Mapping[bytes, bytes]) -> Caller:
        """As ``admit``, with what the key is good for. Without keys, everybody may do everything."""
        if not self._digests:
            return Caller(ANONYMOUS, Role.MANAGE)
        sent = _sent_key(headers)
        if sent is None:
            raise Unauthorized(_MISSING)
        digest = _digest(sent)
        found: Caller | None = None
        # Every key is compared, whatever matched before: the time taken tells nothing.
        for caller, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = caller
        if found is None:
            raise Unauthorized(_WRONG)
        return found


def _digests(keys: Iterable[KeyEntry | tuple[str, str]]) -> tuple[tuple[Caller, bytes], ...]:
    digests: list[tuple[Caller, bytes]] = []
    for entry in keys:
        name, key, role = KeyEntry(*entry)
        if not key.strip():
            raise ConfigError(f"The API key named {name!r} is empty. Give it a value or remove it.")
        digests.append((Caller(name, role), _digest(key.encode())))
    return tuple(digests)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _sent_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, credentials = authorization.partition(b" ")
        if scheme.lower() == b"bearer" and credentials.strip():
            return credentials.strip()
    return headers.get(b"x-api-key") or None
