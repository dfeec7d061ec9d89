"""The table of metrics keeps to the rules of Prometheus."""

import re

from xgen_ray.serving.metrics.rows import METRICS, Kind


def test_every_metric_has_our_prefix_a_name_of_its_own_and_words() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"xgen_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert all(re.fullmatch("[a-z_]+", label) for label in metric.labels)
        # Ray has these for itself, and quantiles need this one.
        assert not {"le", "pid", "ip", "Component", "WorkerId"} & set(metric.labels)


def test_names_end_in_their_unit_and_never_in_what_prometheus_adds() -> None:
    for metric in METRICS:
        assert not metric.name.endswith(("_total", "_bucket", "_sum", "_count"))
        if metric.kind is Kind.HISTOGRAM:
            assert metric.name.endswith("_seconds")


def test_only_histograms_have_bounds_and_those_rise() -> None:
    for metric in METRICS:
        assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.bounds) == sorted(set(metric.bounds))
