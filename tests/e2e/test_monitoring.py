"""A real Prometheus, started by the committed script, scrapes the stack: panels and rules get data."""

import math
from collections.abc import Iterator
from typing import Any

import openai
import psutil
import pytest

from tests.cluster_configs.monitoring import looked_at, names_in, needs_prometheus, rules
from tests.e2e.conftest import CHAT
from tests.e2e.prometheus import SOON_S, Prometheus, scraping
from tests.stack import Stack, wait_until
from xgen_ray.serving.metrics.rows import METRICS

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.engine,
    pytest.mark.timeout(300),
    needs_prometheus(),
]

# The fleet has the cards (test_fleet.py). Engines that fail, that break requests off, and that tell of their
# cache are in test_ladder.py.
GPUS = {name for metric in METRICS for name in metric.series if name.startswith("ray_xgen_gpu_")}
MAY_BE_EMPTY = GPUS | {
    "ray_xgen_engine_cache_ratio",
    "ray_xgen_failures_total",
    "ray_xgen_demotions_total",
    "XgenRayRequestsFail",
}


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scraping the stack, with two streams between two scrapes."""
    with scraping(stack.url, tmp_path_factory.mktemp("monitoring")) as made:
        counted = 'sum(ray_xgen_requests_total{model="' + CHAT + '",outcome="ok"})'
        stream(stack)
        before = figure(made.wait_for(counted))
        stream(stack)
        made.wait_for(counted, lambda seen: figure(seen) > before)
        yield made


def figure(seen: list[dict[str, Any]]) -> float:
    """Not a number where there is none yet: whatever it is compared with does not hold."""
    return float(seen[0]["value"][1]) if len(seen) == 1 else math.nan


def stream(stack: Stack) -> None:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        asked: Any = [{"role": "user", "content": "Count to five."}]
        for _ in client.chat.completions.create(model=CHAT, messages=asked, max_tokens=12, stream=True):
            pass


def test_every_panel_and_every_rule_has_data(prometheus: Prometheus) -> None:
    prometheus.wait_for_data(
        {
            where: expression
            for where, expression in looked_at()
            if not {where, *names_in(expression)} & MAY_BE_EMPTY
        }
    )


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in rules()]
    wait_until(
        lambda: all(rule["health"] == "ok" for rule in prometheus.get("rules")["groups"][0]["rules"]),
        SOON_S,
        "every rule is evaluated",
    )
    alerts = prometheus.get("alerts")["alerts"]
    firing = {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}
    assert not firing & {
        "XgenRayNoMetrics",
        "XgenRayModelNotServed",
        "XgenRayNodeLost",
        "XgenRayRequestsFail",
    }


def test_series_carry_their_node_model_and_backend(stack: Stack, prometheus: Prometheus) -> None:
    (node,) = stack.management("GET", "nodes").json()["nodes"]
    (engine,) = prometheus.wait_for(f'ray_xgen_engine_slots{{model="{CHAT}"}}')
    labels = engine["metric"]
    assert labels["node"] == labels["xgen_node"] == node["node"]
    assert labels["backend"] == labels["pool"] == "llama-server-cpu"
    assert figure([engine]) == 4
    total = node["memory_total_bytes"]
    prometheus.wait_for("ray_xgen_node_memory_bytes", lambda seen: figure(seen) == total)
    # The engine's own counters are under our names.
    written = f'ray_xgen_engine_generated_tokens_total{{model="{CHAT}"}}'
    prometheus.wait_for(written, lambda seen: figure(seen) >= 2)
    router = prometheus.wait_for(
        f'sum by (pool, backend) (ray_xgen_first_token_seconds_count{{model="{CHAT}"}})',
        lambda seen: figure(seen) >= 2,
    )
    assert router[0]["metric"] == {"pool": "llama-server-cpu", "backend": "llama-server-cpu"}


def test_the_page_has_the_same_figures(stack: Stack, prometheus: Prometheus) -> None:
    def told() -> bool:
        """Routers report every few seconds, and a step of time is shown when it is over."""
        figures = stack.management("GET", "figures").json()
        streams = [one for one in figures["streams"] if one["model"] == CHAT and one["backend"]]
        steps = figures["models"].get(CHAT, [])
        counted = [one["ended"].get("ok", 0) >= 2 and one["tokens"] > 0 for one in streams]
        return counted == [True] and any(step["first_p50_s"] for step in steps)

    wait_until(told, SOON_S, "control's own figures")


def test_metrics_are_served_on_loopback_only(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    port = int(target["labels"]["instance"].rpartition(":")[2])
    listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    addresses = {place.ip for place in listening if place and place.port == port}
    assert addresses <= {"127.0.0.1", "::1"}
    assert addresses
