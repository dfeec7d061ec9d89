"""Samples into Ray's own metrics, where its dashboard and Prometheus find them."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from xgen_ray.serving.metrics.rows import BY_NAME, METRICS, Kind, Metric, Sample, Source

logger = logging.getLogger(__name__)

EXPORT_S: Final = 5.0
# Ray's agent forgets a level that is not said again within two of its report intervals.
_AGAIN_S: Final = 2.0
# Asking a node's vendor libraries costs a fraction of a second.
NODE_EXPORT_S: Final = 15.0


class Exporter:
    """The metrics of one process. Belongs to one task."""

    def __init__(self, source: Source) -> None:
        self._metrics = {metric.name: _made(metric) for metric in METRICS if metric.source is source}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._levels: dict[tuple[str, tuple[str, ...]], float] = {}

    def record(self, samples: Iterable[Sample]) -> None:
        """Everything the process has to say now: a level that is not said again is none, that is zero."""
        levels: dict[tuple[str, tuple[str, ...]], float] = {}
        for sample in samples:
            key = (sample.name, sample.labels)
            tags = dict(zip(BY_NAME[sample.name].labels, sample.labels, strict=True))
            match self._metrics[sample.name]:
                case Counter() as counter:
                    self._count(counter, key, sample.value, tags)
                case Gauge():
                    levels[key] = sample.value
                case Histogram() as histogram:
                    histogram.observe(sample.value, tags)
        gone = self._levels.keys() - levels.keys()
        self._levels = {**dict.fromkeys(gone, 0.0), **levels}
        self.repeat()
        self._levels = levels

    def repeat(self) -> None:
        """Says all levels once more."""
        for (name, labels), value in self._levels.items():
            if isinstance(gauge := self._metrics[name], Gauge):
                gauge.set(value, dict(zip(BY_NAME[name].labels, labels, strict=True)))

    def _count(
        self, counter: Counter, key: tuple[str, tuple[str, ...]], total: float, tags: dict[str, str]
    ) -> None:
        before = self._totals.get(key, 0.0)
        # A total that has fallen has begun anew.
        grown = total - before if total >= before else total
        if grown > 0:
            counter.inc(grown, tags)
        self._totals[key] = total


async def keep_exporting(
    source: Source, read: Callable[[], Awaitable[Iterable[Sample]]], every_s: float = EXPORT_S
) -> None:
    """Runs until it is cancelled. A reading that fails is left out, with a line in the log."""
    exporter = Exporter(source)
    while True:
        try:
            exporter.record(await read())
        except Exception:
            # Whatever it is, what the process is for goes on.
            logger.exception("metrics not recorded: source=%s", source.value)
        until = time.monotonic() + every_s
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, _AGAIN_S))
            exporter.repeat()


def _made(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.kind:
        case Kind.COUNTER:
            return Counter(metric.name, metric.help, metric.labels)
        case Kind.GAUGE:
            return Gauge(metric.name, metric.help, metric.labels)
        case Kind.HISTOGRAM:
            return Histogram(metric.name, metric.help, list(metric.bounds), metric.labels)
