"""The server as the command line sees it: a thin client of ``/api/management`` and ``/v1``.

Every failure comes out as a ``CommandError`` with its exit code; the key is in no message.
"""

import ipaddress
import json
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from xgen_ray import __version__
from xgen_ray.bench.sse import Delta, EventDecoder, error_text, read_delta
from xgen_ray.cli.exits import CommandError, ExitCode, code_of_answer
from xgen_ray.errors import Forbidden
from xgen_ray.schema import (
    DrainReport,
    DrainRequest,
    LiftRequest,
    LoadRequest,
    LogPage,
    ModelStatus,
    NodesReport,
    PlanReport,
    ScaleRequest,
    StatusReport,
    Wire,
)

Answer = TypeVar("Answer", bound=BaseModel)

_MANAGEMENT = "/api/management"


class ServerRefusal(CommandError):
    """The server answered with an error. ``code`` and ``details`` are as it sent them."""

    def __init__(
        self, exit_code: ExitCode, message: str, status: int, code: str | None, details: Mapping[str, Any]
    ) -> None:
        hint = None
        if exit_code is ExitCode.UNAUTHORISED and code != Forbidden.code:
            hint = "Give the server's key in XGEN_RAY_API_KEY or with --api-key."
        super().__init__(exit_code, message, hint)
        self.status = status
        self.code = code
        self.details = details


class NoServer(CommandError):
    """Nobody takes a connection at the address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            ExitCode.UNREACHABLE,
            f"No server answers at {url} ({reason}).",
            "Start one with `xgen-ray up`, or say where it is with --url or XGEN_RAY_URL.",
        )


class Server:
    """One server, addressed by ``url`` (its root, with or without ``/v1``). Close it after use.

    ``timeout_s`` bounds every single answer, ``connect_timeout_s`` the finding of the server.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self.url = _root_of(url)
        self.has_key = bool(api_key)
        headers = {"User-Agent": f"xgen-ray/{__version__}"}
        if api_key:
            headers["Authorization"] = f"Bearer {_sendable(api_key)}"
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            # A proxy for the outside world must not stand between this machine and itself.
            trust_env=not is_loopback(self.url),
            verify=_trust(self.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def status(self) -> StatusReport:
        return self._management("GET", "status", StatusReport)

    def model_status(self, name: str) -> ModelStatus | None:
        """Return the state of one model; None if the server has none of that name."""
        return next((model for model in self.status().models if model.name == name), None)

    def plan(self, request: LoadRequest) -> PlanReport:
        return self._management("POST", "plan", PlanReport, body=_body(request))

    def load(self, request: LoadRequest) -> ModelStatus:
        """Start a load and return at once."""
        return self._management("POST", "load", ModelStatus, body=_body(request), query={"wait": "false"})

    def unload(self, name: str) -> ModelStatus:
        """Start an unload and return at once: requests that run may take their time to finish."""
        return self._management("POST", "unload", ModelStatus, body={"name": name}, query={"wait": "false"})

    def nodes(self) -> NodesReport:
        """Return every node of the cluster, also those that do not answer."""
        return self._management("GET", "nodes", NodesReport)

    def scale(self, request: ScaleRequest) -> ModelStatus:
        """Change how many replicas a model has."""
        return self._management("POST", "scale", ModelStatus, body=_body(request))

    def drain(self, request: DrainRequest) -> DrainReport:
        """Take a node out of service, or put it back; return at once."""
        return self._management("POST", "drain", DrainReport, body=_body(request))

    def lift(self, request: LiftRequest) -> None:
        """Give excluded backends of a model another chance. Raises ``ServerRefusal`` if there are none."""
        body = request.model_dump(mode="json", exclude_defaults=True)
        with self._translated():
            response = self._http.post(f"{_MANAGEMENT}/lift", json=body)
        if response.status_code != httpx.codes.NO_CONTENT:
            self._checked(response, ours=True)
            raise self._stranger(response)

    def logs(
        self, name: str, *, after: int, limit: int, replica_id: str | None, of: str | None = None
    ) -> LogPage:
        """Return lines from number ``after`` of the replica ``of`` on, or another's when that one is gone."""
        query = {"model": name, "after": str(after), "limit": str(limit)}
        if replica_id is not None:
            query["replica"] = replica_id
        if of is not None:
            query["of"] = of
        return self._management("GET", "logs", LogPage, query=query)

    def model_names(self) -> list[str]:
        """Return the names under ``/v1/models``, of any OpenAI-compatible server."""
        with self._translated():
            response = self._http.get("/v1/models")
        data = self._checked(response)
        entries = data.get("data", []) if isinstance(data, dict) else []
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    def chat(self, body: dict[str, Any]) -> Generator[Delta]:
        """Stream a chat completion. Closing the iterator early tells the server to stop."""
        decoder = EventDecoder()
        with self._translated(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                self._checked(response)
            for chunk in response.iter_bytes():
                for data in decoder.feed(chunk):
                    yield read_delta(data)

    def _management(
        self,
        method: str,
        path: str,
        kind: type[Answer],
        *,
        body: dict[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> Answer:
        with self._translated():
            response = self._http.request(method, f"{_MANAGEMENT}/{path}", json=body, params=query)
        data = self._checked(response, ours=True)
        try:
            return kind.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "body"
            message = (
                f"{self.url} sent an answer that xgen-ray {__version__} does not understand "
                f"({place}: {first['msg']}). Use the client of the server's version."
            )
            raise CommandError(ExitCode.FAILED, message) from None

    def _checked(self, response: httpx.Response, *, ours: bool = False) -> Any:
        """Return the JSON of a good answer; raise what a bad one says.

        ``ours`` is a path that only xgen-ray has, whose errors always have a code in words.
        """
        try:
            data = response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            data = None
        if response.is_success and data is not None:
            return data
        error = data.get("error") if isinstance(data, dict) else None
        code = error.get("code") if isinstance(error, dict) else None
        if not isinstance(error, dict) or (ours and not isinstance(code, str)):
            raise self._stranger(response)
        code = code if isinstance(code, str) else None
        details = error.get("details")
        raise ServerRefusal(
            code_of_answer(response.status_code, code),
            error_text(data),
            response.status_code,
            code,
            details if isinstance(details, dict) else {},
        )

    def _stranger(self, response: httpx.Response) -> CommandError:
        message = (
            f"{self.url} answers, but not as xgen-ray does (HTTP {response.status_code} for "
            f"{response.url.path}). Is this the right address and port?"
        )
        return CommandError(ExitCode.UNREACHABLE, message)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn httpx's exceptions into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoServer(self.url, _reason(error)) from None
        except httpx.TimeoutException:
            raise CommandError(
                ExitCode.TIMED_OUT,
                f"{self.url} gave no answer in time. It may be busy; `xgen-ray ps` shows its state.",
            ) from None
        except httpx.HTTPError as error:
            raise CommandError(
                ExitCode.UNREACHABLE, f"The connection to {self.url} broke ({_reason(error)}). Try again."
            ) from None


def _body(request: Wire) -> dict[str, Any]:
    return request.model_dump(mode="json", exclude_defaults=True)


def _reason(error: Exception) -> str:
    text = str(error).split("] ", 1)[-1].strip()
    return text[:1].lower() + text[1:] if text else type(error).__name__


def _root_of(url: str) -> str:
    """Return the server's root. Refuses what is no address, and a password in it, which would be shown."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        shown = url.rpartition("@")[2]
        message = f"{shown!r} is no address of a server. Write it like http://127.0.0.1:8000."
        raise CommandError(ExitCode.USAGE, message)
    if parts.username or parts.password:
        message = "A user or password does not belong into the URL. Give the key in XGEN_RAY_API_KEY."
        raise CommandError(ExitCode.USAGE, message)
    return url.rstrip("/").removesuffix("/v1")


def _trust(url: str) -> ssl.SSLContext | bool:
    """Return whom to trust: for a server without TLS nobody, which spares reading all authorities."""
    return True if urlsplit(url).scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _sendable(api_key: str) -> str:
    if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
        message = (
            "The API key has characters that no HTTP header can carry (a line break, a space, an umlaut). "
            "Was it read from a file together with its newline?"
        )
        raise CommandError(ExitCode.USAGE, message)
    return api_key


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
