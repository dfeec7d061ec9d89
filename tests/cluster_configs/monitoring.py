"""The committed dashboards and rules, read; and the Prometheus that the tests have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from xgen_ray.serving.metrics.rows import METRICS

FOLDER = Path(__file__).parents[2] / "cluster_configs" / "monitoring"
DASHBOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
PROGRAMS = Path(__file__).parents[2] / ".cache" / "prometheus"
SERIES = {name for metric in METRICS for name in metric.series}


def needs_prometheus() -> pytest.MarkDecorator:
    missing = PROGRAMS / "missing"
    there = (PROGRAMS / "bin" / "prometheus").exists()
    reason = missing.read_text().strip() if missing.exists() else "make test sets Prometheus up"
    return pytest.mark.skipif(not there, reason=reason)


def panels() -> Iterator[tuple[str, str]]:
    """Every query, as (dashboard: panel, expression), with Grafana's variables filled in."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", "1m")
                yield f"{path.stem}: {panel['title']}", re.sub(r"\$(model|node)\b", ".*", expression)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def looked_at() -> Iterator[tuple[str, str]]:
    """Every panel's query, and what every alert looks at whether it fires or not: comparisons leave nothing
    out, and what should not be absent stands for its absence.
    """
    yield from panels()
    for rule in rules():
        compared = re.sub(r" (>=|<=|==|>|<) ", r" \1 bool ", rule["expr"])
        yield rule["alert"], re.sub(r"\babsent\b", "sum", compared).replace(" unless ", " or ")


def names_in(expression: str) -> set[str]:
    """The metrics of ours that an expression reads."""
    return set(re.findall(r"\bray_[a-z_]+", expression))
