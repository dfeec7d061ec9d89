"""Talking to an engine over HTTP: is it well, how busy is it, and can it really compute."""

import asyncio
import math
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from xgen_ray.backends.engine import EngineAddress, EngineLoad
from xgen_ray.errors import EngineFailed
from xgen_ray.models.types import ModelFacts, ModelTask
from xgen_ray.process import FailureClass

HEALTH_TIMEOUT_S: Final = 5.0
# A busy llama-server answers between two batches; a report that comes later is out of date.
LOAD_TIMEOUT_S: Final = 3.0
_SHOWN_CHARS: Final = 500
_REFUSED: Final = frozenset({401, 403})
_BUSY_S: Final = 0.5
_RUNNING: Final = frozenset({"llamacpp:requests_processing", "vllm:num_requests_running"})
_WAITING: Final = frozenset({"llamacpp:requests_deferred", "vllm:num_requests_waiting"})
_CACHE_USED: Final = frozenset(
    {"llamacpp:kv_cache_usage_ratio", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"}
)

_PROMPT_TOKENS: Final = frozenset({"llamacpp:prompt_tokens_total", "vllm:prompt_tokens_total"})
_GENERATED_TOKENS: Final = frozenset({"llamacpp:tokens_predicted_total", "vllm:generation_tokens_total"})


class EngineClient:
    """Asks one engine. Entered and left like a file; ``address`` has the key that goes with every request."""

    def __init__(self, address: EngineAddress) -> None:
        self._http = httpx.AsyncClient(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.key}"},
            # An engine is a neighbour: no proxy of the environment stands between, and no TLS. An empty
            # context spares reading all certificate authorities.
            trust_env=False,
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def healthy(self) -> bool:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                return (await self._http.get("/health", timeout=HEALTH_TIMEOUT_S)).status_code == 200
        except (httpx.HTTPError, TimeoutError):
            return False

    async def load(self, slots: int) -> EngineLoad | None:
        """Running and waiting requests from ``/metrics``; None if it gives no answer in time."""
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                answer = await self._http.get("/metrics", timeout=LOAD_TIMEOUT_S)
        except (httpx.HTTPError, TimeoutError):
            return None
        return read_load(answer.text, slots) if answer.status_code == 200 else None

    async def canary(self, facts: ModelFacts, task: ModelTask, deadline_s: float) -> None:
        """Make the engine compute the least there is. Raises ``EngineFailed`` with its answer.

        ``/health`` says 200 while every request fails, so only this counts as ready. A connection that
        breaks raises ``httpx.TransportError``: then it is the engine's death that explains it.
        """
        try:
            trouble = await self.trouble(facts, task, deadline_s)
        except TimeoutError as late:
            trouble = str(late)
        if trouble is not None:
            raise EngineFailed(
                f"the engine started but cannot compute: it {trouble}. Try another backend, or read its log.",
                FailureClass.CANARY_FAILED,
            )

    async def refuses_strangers(self, facts: ModelFacts, task: ModelTask, deadline_s: float) -> None:
        """Make sure that who has no key cannot make the engine compute. Raises ``EngineFailed`` if so.

        A command that drops its environment (``sudo``, ``ssh``) starts an engine without its key. A
        connection that breaks raises ``httpx.TransportError``, as with ``canary``.
        """
        path, _ = _canary_request(facts, task)
        request = self._http.build_request("POST", path, json={}, timeout=deadline_s)
        del request.headers["Authorization"]
        try:
            status = (await self._answer(request, deadline_s)).status_code
            if status >= 500:
                # Perhaps it was busy, which says nothing.
                await asyncio.sleep(_BUSY_S)
                status = (await self._answer(request, deadline_s)).status_code
        except TimeoutError as late:
            raise EngineFailed(f"the engine started but {late}", FailureClass.CANARY_FAILED) from None
        if status >= 500:
            raise EngineFailed(
                f"the engine does not say whether it asks for its key: it answered {path} without it with "
                f"{status}. Its log has the reason.",
                FailureClass.CANARY_FAILED,
            )
        if status not in _REFUSED:
            raise EngineFailed(
                f"the engine computes for whoever reaches its port: it answered {path} without its key "
                f"with {status}. Its command drops the environment that it is started with, as sudo, ssh and "
                "env -i do; name one that keeps it.",
                FailureClass.CANARY_FAILED,
            )

    async def trouble(self, facts: ModelFacts, task: ModelTask, deadline_s: float) -> str | None:
        """What the engine does when it is asked to compute the least there is; None: it computes.

        Raises ``TimeoutError`` when it gives no answer, which one with much to do may not, and
        ``httpx.TransportError`` when the connection breaks.
        """
        path, body = _canary_request(facts, task)
        request = self._http.build_request("POST", path, json=body, timeout=deadline_s)
        answer = await self._answer(request, deadline_s)
        shown = " ".join(answer.text.split())[:_SHOWN_CHARS]
        if answer.status_code != 200:
            return f"answered {path} with {answer.status_code}: {shown}"
        try:
            useful = _computed(answer.json(), task)
        except (ValueError, LookupError, TypeError, AttributeError):
            useful = False
        return None if useful else f"answered {path} with 200 but without a result: {shown}"

    async def _answer(self, request: httpx.Request, deadline_s: float) -> httpx.Response:
        try:
            async with asyncio.timeout(deadline_s):
                return await self._http.send(request)
        except (TimeoutError, httpx.TimeoutException):
            raise TimeoutError(f"gave no answer to {request.url.path} within {deadline_s:g} s") from None


def read_load(metrics: str, slots: int) -> EngineLoad | None:
    """The load in a Prometheus text; None if it has no such figures or is none."""
    running = waiting = None
    used: list[float] = []
    prompts: list[float] = []
    generated: list[float] = []
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name in _RUNNING:
                    running = (running or 0) + int(sample.value)
                elif sample.name in _WAITING:
                    waiting = (waiting or 0) + int(sample.value)
                elif sample.name in _CACHE_USED and math.isfinite(sample.value):
                    used.append(sample.value)
                elif sample.name in _PROMPT_TOKENS:
                    prompts.append(sample.value)
                elif sample.name in _GENERATED_TOKENS:
                    generated.append(sample.value)
    except (ValueError, OverflowError):
        return None
    # Of several engines behind one address, the fullest turns requests away first.
    fullest = max(used, default=None)
    if running is None:
        return None
    read, written = (sum(counts) if counts else None for counts in (prompts, generated))
    return EngineLoad(running, waiting or 0, slots, fullest, read, written)


def _canary_request(facts: ModelFacts, task: ModelTask) -> tuple[str, Mapping[str, Any]]:
    if task is ModelTask.EMBED:
        return "/v1/embeddings", {"input": "Hi"}
    if task is ModelTask.RERANK:
        return "/v1/rerank", {"query": "Hi", "documents": ["Hi", "Bye"]}
    # Without a model's name: an engine has one, and vLLM knows it by the name that users have for it alone.
    common: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
    if facts.has_chat_template:
        return "/v1/chat/completions", {**common, "messages": [{"role": "user", "content": "Hi"}]}
    return "/v1/completions", {**common, "prompt": "Hi"}


def _computed(body: Any, task: ModelTask) -> bool:
    if task is ModelTask.EMBED:
        vector = body["data"][0]["embedding"]
        return bool(vector) and any(vector) and all(math.isfinite(value) for value in vector)
    if task is ModelTask.RERANK:
        return all(math.isfinite(item["relevance_score"]) for item in body["results"]) and bool(
            body["results"]
        )
    return bool(body["choices"]) and body["usage"]["completion_tokens"] >= 1
