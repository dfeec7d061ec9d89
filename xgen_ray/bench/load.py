"""The load itself: a closed loop of streams, bounded in count and in time.

A stream sends its next request when the last one is answered, so the server is never asked for more
than ``streams`` requests at once. Nothing here decides what a figure means: see ``stats``.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass

import aiohttp

from xgen_ray.bench.sse import EventDecoder, error_text, read_delta
from xgen_ray.bench.stats import LevelReport, Outcome, RunReport, summarise
from xgen_ray.bench.workload import Target, Workload
from xgen_ray.errors import (
    EngineFailed,
    EngineUnreachable,
    InvalidRequest,
    ModelNotFound,
    Unauthorized,
    XgenRayError,
)

# Called after each request of a level, with the number that are over (answered or failed).
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Dialect:
    """Fields that a server understands beyond the common ones, found out by asking it once."""

    ignore_eos: bool = True
    usage: bool = True


async def warm_up(target: Target, workload: Workload, *, streams: int = 1) -> Dialect:
    """Ask once for the dialect, then with ``streams`` at once, so that what is measured is not the start.

    Raises ``EngineUnreachable``, ``Unauthorized``, ``ModelNotFound``, ``InvalidRequest`` or
    ``EngineFailed``: a target that cannot answer one request is not worth a load.
    """
    async with _connections(target, workload) as connections:
        refused: Outcome | None = None
        for dialect in (Dialect(), Dialect(ignore_eos=False), Dialect(ignore_eos=False, usage=False)):
            outcome = await _request(connections, target, workload, -1, dialect)
            if outcome.error is None:
                break
            if outcome.error not in ("http 400", "http 422"):
                raise _as_error(target, outcome)
            refused = refused or outcome
        else:
            raise _as_error(target, refused or outcome)
        if streams > 1:
            await asyncio.gather(
                *(_request(connections, target, workload, -2 - n, dialect) for n in range(streams))
            )
    return dialect


async def run_level(
    target: Target,
    workload: Workload,
    streams: int,
    *,
    dialect: Dialect | None = None,
    first_index: int = 0,
    progress: Progress | None = None,
) -> LevelReport:
    """Load ``target`` with ``streams`` concurrent streams and return what they got.

    Failed requests are counted and do not stop the level; ``workload.time_limit_s`` does, and cuts
    what is still under way. ``first_index`` sets the first prompt, so that two levels need not share any.
    """
    if streams < 1:
        message = f"a level needs at least one stream, got {streams}"
        raise InvalidRequest(message, "streams")
    dialect = dialect or Dialect()
    total = streams * workload.requests_per_stream
    indices = iter(range(first_index, first_index + total))
    outcomes: list[Outcome] = []
    async with _connections(target, workload) as connections:

        async def stream() -> None:
            # A shared iterator: a quick stream takes over from a slow one, so that none runs on alone.
            for index in indices:
                outcomes.append(await _request(connections, target, workload, index, dialect))
                if progress is not None:
                    progress(len(outcomes))

        started = time.perf_counter()
        tasks = [asyncio.create_task(stream()) for _ in range(streams)]
        _, cut = await asyncio.wait(tasks, timeout=workload.time_limit_s)
        duration = time.perf_counter() - started
        for task in cut:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
    return summarise(streams, outcomes, unfinished=total - len(outcomes), duration_s=duration)


async def run(
    target: Target,
    workload: Workload,
    levels: Sequence[int],
    *,
    on_level: Callable[[int], Progress] | None = None,
) -> RunReport:
    """Warm up, then run every level in turn. ``on_level(streams)`` gives the progress callback of a level."""
    dialect = await warm_up(target, workload, streams=min(max(levels, default=1), 4))
    reports = []
    first = 0
    for streams in levels:
        progress = on_level(streams) if on_level else None
        reports.append(
            await run_level(target, workload, streams, dialect=dialect, first_index=first, progress=progress)
        )
        first += streams * workload.requests_per_stream
    return RunReport(
        url=target.url,
        model=target.model,
        taken_at=time.time(),
        workload={**asdict(workload), **asdict(dialect)},
        levels=tuple(reports),
    )


@dataclass(frozen=True, slots=True)
class _Connections:
    """``kept`` reuses its connections, as real clients do; ``fresh`` opens one for each request."""

    kept: aiohttp.ClientSession
    fresh: aiohttp.ClientSession


@asynccontextmanager
async def _connections(target: Target, workload: Workload) -> AsyncIterator[_Connections]:
    headers = {"Content-Type": "application/json"}
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    timeout = aiohttp.ClientTimeout(total=workload.request_timeout_s, sock_connect=10)
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=timeout
        ) as kept,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), headers=headers, timeout=timeout
        ) as fresh,
    ):
        yield _Connections(kept, fresh)


async def _request(
    connections: _Connections, target: Target, workload: Workload, index: int, dialect: Dialect
) -> Outcome:
    """Send one request and time it. Its failures are part of the result; only bugs and cancels raise."""
    body = workload.body(target, index, ignore_eos=dialect.ignore_eos, usage=dialect.usage)
    # Everything that only the client is slow at comes before the clock starts.
    encoded = json.dumps(body).encode()
    started = time.perf_counter()
    try:
        response, retried = await _sent(connections, target.chat_url, encoded)
        async with response:
            return await _answer(response, started, retried=retried)
    except TimeoutError:
        return _failed(started, "timeout", f"no answer within {workload.request_timeout_s:g} s")
    except aiohttp.ClientConnectorError as error:
        number = error.os_error.errno
        why = os.strerror(number).lower() if number else str(error.os_error)
        return _failed(started, "unreachable", why)
    except aiohttp.ClientError as error:
        return _failed(started, "broken stream", f"{type(error).__name__}: {error}")


async def _sent(connections: _Connections, url: str, body: bytes) -> tuple[aiohttp.ClientResponse, bool]:
    """Return the answer's beginning, and whether it took a second connection.

    A server may close a kept connection just as it is used again (seen with llama-server
    after a stream). That is no failure of the request: it goes out once more, and the clock runs on.
    """
    try:
        return await connections.kept.post(url, data=body), False
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
        return await connections.fresh.post(url, data=body), True


async def _answer(response: aiohttp.ClientResponse, started: float, *, retried: bool) -> Outcome:
    """Read the stream to its end and note when text came."""
    if response.status != 200:
        return _failed(started, f"http {response.status}", await _error_of(response), retried=retried)
    decoder = EventDecoder()
    times: list[float] = []
    tokens: int | None = None
    finished = False
    async for chunk in response.content.iter_any():
        now = time.perf_counter()
        for data in decoder.feed(chunk):
            delta = read_delta(data)
            if delta.error is not None:
                return _failed(started, "error event", delta.error, retried=retried)
            if delta.says_something:
                times.append(now)
            if delta.completion_tokens is not None:
                tokens = delta.completion_tokens
            finished = finished or delta.done or delta.finish_reason is not None
    ended = time.perf_counter()
    if not finished:
        return _failed(started, "broken stream", "the stream ended before the answer did", retried=retried)
    if not times:
        return _failed(started, "empty answer", "the stream carried no text", retried=retried)
    return Outcome(started, ended, tuple(times), tokens, retried=retried)


async def _error_of(response: aiohttp.ClientResponse) -> str:
    raw = await response.content.read(4096)
    try:
        return error_text(json.loads(raw))
    except ValueError:
        return raw.decode(errors="replace").strip() or (response.reason or "no text")


def _failed(started: float, error: str, detail: str, *, retried: bool = False) -> Outcome:
    return Outcome(started, time.perf_counter(), error=error, detail=detail, retried=retried)


def _as_error(target: Target, outcome: Outcome) -> XgenRayError:
    said = f"{target.chat_url}: {(outcome.detail or outcome.error or '').rstrip('. ')}"
    match outcome.error:
        case "unreachable":
            return EngineUnreachable(f"{said}. Is the server running at this address?")
        case "http 401" | "http 403":
            return Unauthorized(f"{said}. Give the server's key.")
        case "http 404":
            return ModelNotFound(f"{said}. Ask for a name that {target.url} lists under /v1/models.")
        case "http 400" | "http 422":
            return InvalidRequest(f"{said}.")
        case _:
            return EngineFailed(f"the warm-up request failed ({outcome.error}): {said}.")
