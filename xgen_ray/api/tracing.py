"""Traces of requests, for OpenTelemetry: when an engine was chosen, when it answered, when it was done.

Spans are made when a request is over, from the moments that were noted on its way. The engine gets the
trace's id, so that its own spans hang below ours.
"""

import time
from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from xgen_ray import __version__
from xgen_ray.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_NO_FIELDS: Final[Mapping[str, Any]] = MappingProxyType({})
_SERVICE: Final = "xgen-ray"
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http"
# A batch that a collector does not take in this time is lost, and so long a router's end may wait for it.
_SEND_S: Final = 2.0
# What there is of a request's log line that is no trace's business: its end is the span's own.
_LEFT_OUT: Final = frozenset({"seconds", "path"})


class Trace(Protocol):
    """One request's."""

    @property
    def traceparent(self) -> str:
        """What to tell the engine, as the header of that name."""

    def mark(self, what: str, fields: Mapping[str, Any] = _NO_FIELDS) -> None:
        """``what`` has just ended."""

    def end(self, fields: Mapping[str, Any]) -> None:
        """The request is over; ``fields`` are those of its log line."""


class Tracing(Protocol):
    """Where traces begin."""

    def begin(self, name: str, headers: Mapping[bytes, bytes]) -> Trace:
        """A trace, or a part of the client's own if ``headers`` name one."""

    def close(self) -> None:
        """Send what is left. Blocks for seconds at most."""


def require_tracing(endpoint: str) -> None:
    """Raises ConfigError if traces cannot be sent to ``endpoint``, before anything is started."""
    if not endpoint.startswith(("http://", "https://")) or any(map(str.isspace, endpoint)):
        raise ConfigError(f"{endpoint!r} is no address of a collector, such as http://127.0.0.1:4318")
    if not _installed(_EXPORTER):
        raise ConfigError("traces need the extra 'tracing': pip install 'xgen-ray[tracing]'")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Ray brings some of the packages that it would lie in.
        return False


class OTLPTracing:
    """Sends traces to a collector at ``endpoint``, over OTLP/HTTP, in a thread of its own.

    Raises ConfigError as ``require_tracing`` does.
    """

    def __init__(self, endpoint: str, *, batch_s: float = 5.0) -> None:
        require_tracing(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": _SERVICE, "service.version": __version__})
        self._provider: TracerProvider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_SEND_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=int(batch_s * 1000))
        )
        self._tracer = self._provider.get_tracer(_SERVICE, __version__)

    def begin(self, name: str, headers: Mapping[bytes, bytes]) -> Trace:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {
            key: value.decode("latin-1")
            for key in ("traceparent", "tracestate")
            if (value := headers.get(key.encode())) is not None
        }
        parent = TraceContextTextMapPropagator().extract(sent)
        span = self._tracer.start_span(name, parent, kind=SpanKind.SERVER)
        return _OTLPTrace(self._tracer, span)

    def close(self) -> None:
        self._provider.shutdown()


class _OTLPTrace:
    __slots__ = ("_begun", "_marks", "_span", "_tracer")

    def __init__(self, tracer: Any, span: "Span") -> None:
        self._tracer = tracer
        self._span = span
        self._begun = time.time_ns()
        self._marks: list[tuple[str, int, Mapping[str, Any]]] = []

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"

    def mark(self, what: str, fields: Mapping[str, Any] = _NO_FIELDS) -> None:
        self._marks.append((what, time.time_ns(), fields))

    def end(self, fields: Mapping[str, Any]) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        ended = time.time_ns()
        below = set_span_in_context(self._span)
        since = self._begun
        marks = [*self._marks, ("answer", ended, _NO_FIELDS)] if self._marks else []
        for what, at, attributes in marks:
            span = self._tracer.start_span(what, below, start_time=since, attributes=_known(attributes))
            span.end(at)
            since = at
        self._span.set_attributes(_known(fields))
        status = fields.get("status")
        if fields.get("outcome") != "answered" or (isinstance(status, int) and status >= 500):
            self._span.set_status(Status(StatusCode.ERROR, str(fields.get("outcome"))))
        self._span.end(ended)


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"xgen.{name}": value for name, value in fields.items() if value is not None and name not in _LEFT_OUT
    }
