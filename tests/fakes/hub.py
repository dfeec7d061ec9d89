"""A model hub that runs: the part of the HuggingFace Hub's HTTP interface that downloads use, over files
in memory, with knobs for what goes wrong. Large files are redirected to a second host name, as the real
hub redirects to its storage, so that a token which follows them there is noticed.

Run it over a folder of ``org/name`` folders: ``python -m tests.fakes.hub FOLDER --port 8090``.
"""

import argparse
import contextlib
import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 64 * 1024
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Announced:
    """A file that is listed with a size and has no content."""

    size: int


@dataclass(frozen=True)
class Sparse(Announced):
    """A file of ``size`` bytes that begins with ``head`` and is zeros after it."""

    head: bytes = field(repr=False)

    def cut(self, start: int, end: int) -> bytes:
        return self.head[start:end].ljust(max(end - start, 0), b"\0")


@dataclass
class Repo:
    """One repository. ``token`` makes it private, ``gated`` refuses everyone by name; ``earlier`` is what
    was in it before.
    """

    files: dict[str, bytes | Announced]
    token: str | None = None
    gated: bool = False
    earlier: "Repo | None" = None

    @property
    def commit(self) -> str:
        listing = "".join(f"{name}:{self.etag(name)}" for name in sorted(self.files))
        return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def at(self, revision: str) -> "Repo | None":
        if revision in {"main", self.commit}:
            return self
        return self.earlier.at(revision) if self.earlier is not None else None

    def size(self, name: str) -> int:
        content = self.files[name]
        return content.size if isinstance(content, Announced) else len(content)

    def is_large(self, name: str) -> bool:
        return self.size(name) >= LARGE

    def etag(self, name: str) -> str:
        content = self.files[name]
        data = str(content).encode() if isinstance(content, Announced) else content
        data = content.head if isinstance(content, Sparse) else data
        return _digest(data, large=self.is_large(name))


def _cut(content: bytes | Announced, start: int, end: int) -> bytes:
    if isinstance(content, Sparse):
        return content.cut(start, end)
    return content[start:end] if isinstance(content, bytes) else b""


@lru_cache(maxsize=8)
def _digest(data: bytes, *, large: bool) -> str:
    """Kept, since a file is asked for piece by piece."""
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    method: str
    host: str
    path: str
    range: str | None
    authorized: bool


@dataclass
class Faults:
    """What goes wrong, each knob by file name or path fragment.

    ``drop_after`` closes the connection after so many bytes of a body, once for each entry. ``statuses``
    are answered one after the other before the real answer. ``stall`` holds bodies back, after their
    first chunk, until it is set; ``silent`` holds whole answers back. ``corrupt`` flips a byte.
    ``wrong_range`` answers with another range than was asked for.
    """

    drop_after: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    ignore_range: bool = False
    wrong_range: bool = False
    corrupt: set[str] = field(default_factory=set)
    stall: dict[str, threading.Event] = field(default_factory=dict)
    silent: dict[str, threading.Event] = field(default_factory=dict)
    not_json: bool = False


class StandInHub:
    """The hub itself. ``seen`` grows by one entry for each request; ``served_bytes`` are those of bodies,
    by file name, as far as they were written.
    """

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.served_bytes: Counter[str] = Counter()
        self.stalled = threading.Event()
        hub = self

        class Handler(_HubHandler):
            def __init__(self, *args: Any) -> None:
                self.hub = hub
                super().__init__(*args)

        self._server = _Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage(self) -> str:
        """Where large files are redirected to: another host name, hence another origin."""
        return f"http://localhost:{self.port}"

    def requests(self, method: str, fragment: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and fragment in seen.path]

    def serve_forever(self) -> None:
        self._server.serve_forever()

    @contextlib.contextmanager
    def running(self) -> Iterator["StandInHub"]:
        self._thread.start()
        try:
            yield self
        finally:
            for event in (*self.faults.stall.values(), *self.faults.silent.values()):
                event.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A server whose end is also the end of the connections that clients keep alive."""

    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def server_close(self) -> None:
        super().server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are part of the tests."""


class _HubHandler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        host = self.headers.get("Host", "")
        self.hub.seen.append(Seen(self.command, host, path, self.headers.get("Range"), bool(authorization)))
        for fragment, event in self.hub.faults.silent.items():
            if fragment in path:
                event.wait()
        for fragment, statuses in self.hub.faults.statuses.items():
            if fragment in path and statuses:
                return self._error(statuses.pop(0), None)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._answer_api("/".join(parts[2:4]), parts[4:])
        if parts[0] == "storage":
            return self._answer_storage("/".join(parts[1:3]), "/".join(parts[3:]), urlsplit(self.path).query)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._answer_resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self._error(404, None)

    def _repo(self, repo_id: str, revision: str) -> Repo | None:
        """The repository if the caller may see it; else the refusal has been sent."""
        repo = self.hub.repos.get(repo_id)
        if repo is not None and repo.gated:
            self._error(403, "GatedRepo")
        elif repo is None or (repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}"):
            self._error(401, "RepoNotFound")
        elif (found := repo.at(revision)) is None:
            self._error(404, "RevisionNotFound")
        else:
            return found
        return None

    def _answer_api(self, repo_id: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if self.hub.faults.not_json:
            self._send(200, {"Content-Type": "text/html"}, b"<html>Sign in to the hotel network</html>")
            return
        if rest[:1] == ["tree"]:
            self._json([self._tree_entry(repo, name) for name in repo.files])
        else:
            siblings = [self._sibling(repo, name) for name in repo.files]
            self._json({"id": repo_id, "modelId": repo_id, "sha": repo.commit, "siblings": siblings})

    def _sibling(self, repo: Repo, name: str) -> dict[str, object]:
        entry: dict[str, object] = {
            "rfilename": name,
            "size": repo.size(name),
            "blobId": repo.etag(name)[:40],
        }
        if repo.is_large(name):
            entry["lfs"] = {"sha256": repo.etag(name), "size": repo.size(name), "pointerSize": 134}
        return entry

    def _tree_entry(self, repo: Repo, name: str) -> dict[str, object]:
        size, etag = repo.size(name), repo.etag(name)
        entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": etag[:40]}
        if repo.is_large(name):
            entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 134}
        return entry

    def _answer_resolve(self, repo_id: str, revision: str, name: str) -> None:
        repo = self._repo(repo_id, revision)
        if repo is None:
            return
        if name not in repo.files:
            self._error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{repo.etag(name)}"'}
        if repo.is_large(name):
            headers |= {"X-Linked-Etag": f'"{repo.etag(name)}"', "X-Linked-Size": str(repo.size(name))}
            headers["Location"] = f"{self.hub.storage}/storage/{repo_id}/{name}?{repo.commit}"
            self._send(302, headers, b"")
        else:
            self._send_content(repo, name, headers)

    def _answer_storage(self, repo_id: str, name: str, commit: str) -> None:
        repo = self.hub.repos[repo_id].at(commit)
        if repo is None:
            self._error(404, None)
        else:
            self._send_content(repo, name, {})

    def _send_content(self, repo: Repo, name: str, headers: dict[str, str]) -> None:
        content = repo.files[name]
        size = repo.size(name) if isinstance(content, bytes | Sparse) else 0
        start, end, last = 0, size, ""
        wanted = self.headers.get("Range")
        if wanted and not self.hub.faults.ignore_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else size, size)
            shift = int(self.hub.faults.wrong_range)
            headers["Content-Range"] = f"bytes {start + shift}-{end - 1 + shift}/{size}"
        data = b"" if size == 0 else _cut(content, start, end)
        if name in self.hub.faults.corrupt and start == 0:
            data = bytes([data[0] ^ 0xFF]) + data[1:]
        headers["Accept-Ranges"] = "bytes"
        drops = self.hub.faults.drop_after.get(name, [])
        drop = drops.pop(0) if drops and self.command == "GET" else None
        status = 206 if "Content-Range" in headers else 200
        self._send(status, headers, data, name, drop, stalls=not last)

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        name: str = "",
        drop: int | None = None,
        *,
        stalls: bool = True,
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        # A range with an end is a header being read, not a download.
        stall = self.hub.faults.stall.get(name) if stalls else None
        body = body if drop is None else body[:drop]
        for start in range(0, len(body), _CHUNK):
            self.wfile.write(body[start : start + _CHUNK])
            self.hub.served_bytes[name] += len(body[start : start + _CHUNK])
            if stall is not None and not stall.is_set():
                self.wfile.flush()
                self.hub.stalled.set()
                stall.wait()
        if drop is not None:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(status, headers, b"{}")


def read_repos(folder: Path) -> dict[str, Repo]:
    """Every ``org/name`` folder below ``folder`` as a repository."""
    repos: dict[str, Repo] = {}
    for root in sorted(folder.glob("*/*")):
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        content: dict[str, bytes | Announced] = {
            str(path.relative_to(root)): path.read_bytes() for path in files
        }
        repos[str(root.relative_to(folder))] = Repo(content)
    return repos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    hub = StandInHub(arguments.port)
    hub.repos = read_repos(arguments.folder)
    print(f"{hub.endpoint} serves {', '.join(hub.repos) or 'nothing'}", flush=True)
    hub.serve_forever()


if __name__ == "__main__":
    main()
