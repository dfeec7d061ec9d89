"""Dashboards, alerts and Prometheus' configuration, read by promtool and held against our metrics."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cluster_configs.monitoring import (
    DASHBOARDS,
    FOLDER,
    PROGRAMS,
    SERIES,
    names_in,
    needs_prometheus,
    panels,
    rules,
)
from tests.docs.test_generated import anchors
from xgen_ray.process.types import FailureClass
from xgen_ray.serving.metrics.rows import METRICS

REPOSITORY = Path(__file__).parents[2]


def test_every_expression_reads_metrics_that_exist() -> None:
    for where, expression in [*panels(), *((rule["alert"], rule["expr"]) for rule in rules())]:
        names = names_in(expression)
        assert names, where
        assert names <= SERIES, where


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {name for _, expression in panels() for name in names_in(expression)}
    assert {metric.name for metric in METRICS if not shown & set(metric.series)} == set()


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"xgen-ray-{path.stem}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    known = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval"}
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known


def test_every_alert_leads_to_a_runbook() -> None:
    sections = anchors(REPOSITORY / "docs" / "troubleshooting.md")
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pages = package["urls"]["Changelog"].removesuffix("CHANGELOG.md")
    for rule in rules():
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert page == f"{pages}docs/troubleshooting.md"
        if section == "{{ $labels.failure }}":
            assert {failure.value for failure in FailureClass} - {"stopped"} <= sections
        else:
            assert section in sections, rule["alert"]


@needs_prometheus()
def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text()
    text = text.replace("CONFIG_DIR", str(FOLDER)).replace("XGEN_RAY_URL", "http://127.0.0.1:8000")
    config = tmp_path / "prometheus.yml"
    for key in ("# none", "authorization: {credentials_file: /dev/null}"):
        config.write_text(text.replace("# AUTHORIZATION", key))
        promtool("check", "config", str(config))


@needs_prometheus()
def test_the_rules_fire_when_they_should_and_only_then() -> None:
    tested = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
    named = {one["alertname"] for test in tested for one in test["alert_rule_test"]}
    assert named == {rule["alert"] for rule in rules()}
    promtool("test", "rules", str(FOLDER / "rules.test.yml"))


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [str(PROGRAMS / "bin" / "promtool"), *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
