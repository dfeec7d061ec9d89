"""A request's trace, as a collector gets it over OTLP/HTTP."""

from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.api.stack import stack
from tests.api.support import ENGINE_KEY, die, serving
from xgen_ray.api.tracing import OTLPTracing
from xgen_ray.errors import ConfigError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a private matter"}], "stream": True}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    """What a collector does: takes spans, and says so."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.url = ""

    async def take(self, request: Request) -> Response:
        sent = ExportTraceServiceRequest.FromString(await request.body())
        for group in sent.resource_spans:
            self.services |= {
                one.value.string_value for one in group.resource.attributes if one.key == "service.name"
            }
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type="application/x-protobuf")

    def only(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    async with serving(Starlette(routes=[Route("/v1/traces", made.take, methods=["POST"])])) as url:
        made.url = url
        yield made


async def ask(collector: Collector, *plays: Any, **headers: str) -> dict[str, str]:
    """One streamed chat, until its trace has been sent; returns the headers that the engine got."""
    tracing = OTLPTracing(collector.url)
    async with stack(*plays, tracing=tracing) as running:
        await running.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        return running.engine.requests[0].headers


def attributes(span: Span) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
        for one in span.attributes
    }


async def test_a_request_is_traced_from_ingress_to_the_last_byte(collector: Collector) -> None:
    engine = await ask(collector, **{"x-request-id": "r-7"})
    assert collector.services == {"xgen-ray"}
    root = collector.only("POST /v1/chat/completions")
    parts = [collector.only(name) for name in ("choose an engine", "first byte", "answer")]
    assert {span.parent_span_id for span in parts} == {root.span_id}
    moments = [root.start_time_unix_nano]
    for part in parts:
        assert part.start_time_unix_nano >= moments[-1]
        moments.append(part.end_time_unix_nano)
    assert moments == sorted(moments)
    assert moments[-1] == root.end_time_unix_nano
    told = attributes(root)
    assert (told["xgen.request_id"], told["xgen.model"], told["xgen.status"]) == ("r-7", "m", 200)
    assert attributes(parts[0])["xgen.replica"] == "r1"
    assert engine["traceparent"] == f"00-{root.trace_id.hex()}-{root.span_id.hex()}-01"
    assert engine["x-request-id"] == "r-7"
    everything = "".join(str(span) for span in collector.spans)
    assert ENGINE_KEY not in everything
    assert "a private matter" not in everything


async def test_a_clients_trace_goes_on(collector: Collector) -> None:
    await ask(collector, traceparent=f"00-{TRACE}-{PARENT}-01")
    root = collector.only("POST /v1/chat/completions")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)


async def test_a_failed_request_says_so_and_shows_every_engine_that_was_asked(collector: Collector) -> None:
    await ask(collector, *[die] * 4)
    root = collector.only("POST /v1/chat/completions")
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["xgen.outcome"] == "engine_unreachable"
    assert [span.name for span in collector.spans].count("choose an engine") == 2


async def test_a_collector_that_is_away_costs_no_request(collector: Collector) -> None:
    tracing = OTLPTracing("http://127.0.0.1:9")
    async with stack(tracing=tracing) as running:
        assert (await running.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


def test_without_its_packages_or_an_address_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no address of a collector"):
        OTLPTracing("127.0.0.1:4318")
    monkeypatch.setattr("xgen_ray.api.tracing.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'xgen-ray\[tracing\]'"):
        OTLPTracing("http://127.0.0.1:4318")
    # Ray brings another exporter: then the package above is there, and what lies between is not.
    monkeypatch.setattr("xgen_ray.api.tracing.find_spec", find_spec)
    monkeypatch.setattr("xgen_ray.api.tracing._EXPORTER", "opentelemetry.exporter.nothing.proto.http")
    with pytest.raises(ConfigError, match=r"pip install 'xgen-ray\[tracing\]'"):
        OTLPTracing("http://127.0.0.1:4318")
