"""From what each process knows to samples of known metrics, with the right labels and units."""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.placement.builders import node, rtx4090
from tests.serving.test_dispatcher import choose, engine, with_engines
from xgen_ray.backends import EngineLoad
from xgen_ray.console import EventKind, EventReport
from xgen_ray.hardware.types import GPUUsage, NodeUsage
from xgen_ray.placement import Outstanding
from xgen_ray.placement.types import Backend
from xgen_ray.schema import FailureReport, LoadRequest, Outcome, Phase
from xgen_ray.serving.dispatcher import TableDispatcher
from xgen_ray.serving.metrics.rows import BY_NAME, METRICS, Kind, Sample, Source
from xgen_ray.serving.metrics.samples import FleetEvents, control_samples, engine_samples, node_samples
from xgen_ray.serving.node_state import NodeIdentity, NodeState, Versions
from xgen_ray.serving.state import ControlState, Model


def values(samples: Iterable[Sample]) -> dict[tuple[str, ...], float]:
    """By name and labels, each checked against the table."""
    found = {}
    for sample in samples:
        assert len(sample.labels) == len(BY_NAME[sample.name].labels), sample
        found[(sample.name, *sample.labels)] = sample.value
    return found


async def test_a_router_tells_of_every_stream() -> None:
    router = TableDispatcher(random.Random(1))
    router.apply(with_engines(1, replace(engine("r1"), pool="gpu", wish="a@gpu")))
    first, second = await choose(router), await choose(router)
    router.answering(first)
    await asyncio.sleep(0)
    router.finished(first, Outcome.OK, units=9)
    found = values(router.samples())
    stream = ("a", "gpu", "llama-server-cpu")
    assert found[("xgen_requests", *stream, "ok")] == 1
    assert found[("xgen_tokens", *stream)] == 9
    assert found[("xgen_requests_in_flight", *stream)] == 1
    assert found[("xgen_requests_waiting", "a")] == 0
    assert found[("xgen_first_token_seconds", *stream)] > 0
    assert found[("xgen_between_tokens_seconds", *stream)] > 0
    router.finished(second, Outcome.FAILED, units=0)
    again = values(router.samples())
    assert again[("xgen_requests", *stream, "failed")] == 1
    assert ("xgen_first_token_seconds", *stream) not in again, "each time is told once"


def model(name: str, phase: Phase) -> Model:
    return Model(
        name=name,
        request=LoadRequest(model="/m.gguf"),
        phase=phase,
        reason="",
        attempt=0,
        since=0.0,
        created=0.0,
        wanted=2,
    )


def failure(at: float, word: str = "out_of_memory") -> FailureReport:
    return FailureReport(failure=word, message="why", backend=Backend.LLAMA_SERVER_CPU, node="n1", at=at)


def test_control_tells_of_models_and_replicas() -> None:
    models = {one.name: one for one in (model("a", Phase.READY), model("b@x", Phase.SLEEPING))}
    state = ControlState("life", models=models)
    found = values(control_samples(state, FleetEvents()))
    assert found[("xgen_models", "ready")] == found[("xgen_models", "sleeping")] == 1
    assert found[("xgen_models", "failed")] == 0
    assert found[("xgen_replicas_wanted", "a", "")] == 2
    assert found[("xgen_replicas_wanted", "b", "x")] == 0, "one that sleeps wants none"
    assert found[("xgen_replicas_ready", "a", "")] == 0


def test_control_tells_how_each_node_is_there() -> None:
    """An alert for a node that is gone is for those that somebody has joined and nobody has drained."""
    nodes = {"id-1": "n1", "id-2": "n2", "id-3": "n3", "id-4": "n4"}
    kinds, drained = {"id-2": "nvidia", "id-4": "nvidia"}, {"n3": 1.0, "n4": 1.0, "away": 1.0}
    state = ControlState("life", nodes=nodes, node_kinds=kinds, drained=drained)
    told = {
        key: value
        for key, value in values(control_samples(state, FleetEvents())).items()
        if key[0] == "xgen_nodes"
    }
    assert told == {
        ("xgen_nodes", "n1", "joined"): 1,
        ("xgen_nodes", "n2", "autoscaled"): 1,
        ("xgen_nodes", "n3", "drained"): 1,
        ("xgen_nodes", "n4", "drained"): 1,
    }


def test_failures_and_demotions_are_counted_as_they_come() -> None:
    counts = FleetEvents()
    events = [happened(EventKind.DEATH, failure=failure(at), node="n1") for at in (1.0, 2.0, 3.0)]
    events += [happened(EventKind.DEMOTED), happened(EventKind.READY)]
    counts.count(events[:1])
    counts.count(events[1:])
    assert values(counts.samples()) == {
        ("xgen_failures", "a", "llama-server-cpu", "n1", "out_of_memory"): 3,
        ("xgen_demotions", "a", "llama-server-cpu"): 1,
    }


def happened(kind: EventKind, **more: Any) -> EventReport:
    backend = Backend.LLAMA_SERVER_CPU
    return EventReport(
        id="1", at=1.0, kind=kind, level="info", message="", model="a@x", backend=backend, **more
    )


def test_a_node_tells_of_its_memory_and_of_what_its_cards_say() -> None:
    gpu = rtx4090()
    state = NodeState(
        node=NodeIdentity("id", "n1", "10.0.0.1", {}),
        snapshot=node(gpu),
        statuses=(),
        usage=NodeUsage(
            gpus=(GPUUsage(gpu.device_index, gpu.uuid, gpu.pci_bus_id, 7, 3, utilization_percent=50.0),),
            memory_available_bytes=5,
            cpu_percent=25.0,
            taken_at=1.0,
        ),
        leases=(),
        outstanding=Outstanding((), 0),
        taken=frozenset(),
        leased=(),
        versions=Versions("1", "2", "3"),
        settings="",
    )
    found = {key[0]: value for key, value in values(node_samples(state)).items()}
    assert found["xgen_node_cpu_ratio"] == 0.25
    assert found["xgen_node_memory_available_bytes"] == 5
    assert found["xgen_gpu_utilization_ratio"] == 0.5
    assert found["xgen_gpu_memory_used_bytes"] == 7
    assert found["xgen_gpu_memory_bytes"] == gpu.memory_total_bytes
    assert "xgen_gpu_power_watts" not in found, "what a card does not tell is left out"


@pytest.mark.parametrize(("name", "pool"), [("a", "llama-server-cpu"), ("a@gpu", "gpu")])
def test_an_engine_has_the_labels_that_its_router_gives_it(name: str, pool: str) -> None:
    load = EngineLoad(1, 2, 4, None, 100.0, 50.0)
    found = values(engine_samples(name, "llama-server-cpu", "n1", "r1", load))
    labels = ("a", pool, "llama-server-cpu", "n1", "r1")
    assert found == {
        ("xgen_engine_slots", *labels): 4,
        ("xgen_engine_running", *labels): 1,
        ("xgen_engine_waiting", *labels): 2,
        ("xgen_engine_prompt_tokens", *labels): 100,
        ("xgen_engine_generated_tokens", *labels): 50,
    }


def test_every_source_has_metrics() -> None:
    assert {metric.source for metric in METRICS} == set(Source)
    assert {metric.kind for metric in METRICS} == set(Kind)
