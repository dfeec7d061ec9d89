"""Samples on their way into Ray's metrics: totals become growth, levels are repeated, gone ones are zero."""

from typing import Any

import pytest
from ray.util.metrics import Counter, Gauge, Histogram

from xgen_ray.serving.metrics.export import Exporter
from xgen_ray.serving.metrics.rows import Sample, Source

Told = list[tuple[str, str, float, tuple[str, ...]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What Ray's metrics are told; Ray itself does not run here."""
    words: Told = []

    def telling(verb: str) -> Any:
        def tell(metric: Any, value: float, tags: dict[str, str]) -> None:
            words.append((metric.info["name"], verb, value, tuple(tags.values())))

        return tell

    monkeypatch.setattr(Counter, "inc", telling("inc"))
    monkeypatch.setattr(Gauge, "set", telling("set"))
    monkeypatch.setattr(Histogram, "observe", telling("observe"))
    return words


def test_a_total_is_told_as_what_it_has_grown_by(told: Told) -> None:
    exporter = Exporter(Source.CONTROL)
    labels = ("m", "llama-server-cpu", "n1", "crashed")
    for total in (3, 3, 5, 2):
        exporter.record([Sample("xgen_failures", labels, total)])
    assert [value for _, _, value, _ in told] == [3, 2, 2], "one that has fallen has begun anew"


def test_a_level_that_is_no_longer_told_is_zero_once(told: Told) -> None:
    exporter = Exporter(Source.CONTROL)
    exporter.record([Sample("xgen_replicas_ready", ("m", ""), 2)])
    exporter.repeat()
    exporter.record([])
    exporter.repeat()
    assert [(value, labels) for _, _, value, labels in told] == [
        (2, ("m", "")),
        (2, ("m", "")),
        (0, ("m", "")),
    ]


def test_an_observation_is_told_once(told: Told) -> None:
    exporter = Exporter(Source.ROUTER)
    exporter.record([Sample("xgen_first_token_seconds", ("m", "p", "b"), 0.3)])
    exporter.repeat()
    exporter.record([])
    assert told == [("xgen_first_token_seconds", "observe", 0.3, ("m", "p", "b"))]
