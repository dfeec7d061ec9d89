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


def names_in(expression: str) -> set[str]:
    """The metrics of ours that an expression reads."""
    return set(re.findall(r"\bray_[a-z_]+", expression))
