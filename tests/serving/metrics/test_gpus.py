"""Cards of both vendors in a node's metrics: the vendors' own packages over stand-in libraries."""

import pytest

from tests.hardware.lab import Lab
from tests.hardware.test_native_node import RTX_4090, RX_7900
from tests.serving.metrics.test_samples import values
from xgen_ray.hardware import detect_in_child, take_usage
from xgen_ray.placement import Outstanding
from xgen_ray.serving.metrics.samples import node_samples
from xgen_ray.serving.node_state import NodeIdentity, NodeState, Versions

pytestmark = pytest.mark.native
MIB = 2**20


def test_cards_of_both_vendors_have_their_memory_and_figures(lab: Lab) -> None:
    env = lab.env(nvidia=RTX_4090, amd=RX_7900)
    snapshot = detect_in_child(env=env, deadline_s=30)
    state = NodeState(
        node=NodeIdentity("id", "n1", "10.0.0.1", {}),
        snapshot=snapshot,
        statuses=(),
        usage=take_usage(snapshot.detection, env=env, deadline_s=30),
        leases=(),
        outstanding=Outstanding((), 0),
        taken=frozenset(),
        leased=(),
        versions=Versions("1", "2", "3"),
        settings="",
    )
    found = {(name, *labels[:2]): value for (name, *labels), value in values(node_samples(state)).items()}
    assert found["xgen_gpu_memory_bytes", "n1", "nvidia"] == 24564 * MIB
    assert found["xgen_gpu_memory_used_bytes", "n1", "nvidia"] == 1000 * MIB
    assert found["xgen_gpu_memory_bytes", "n1", "amd"] == 24576 * MIB
    assert found["xgen_gpu_memory_used_bytes", "n1", "amd"] == 1024 * MIB
    for vendor in ("nvidia", "amd"):
        assert 0 <= found["xgen_gpu_utilization_ratio", "n1", vendor] <= 1
        assert found["xgen_gpu_temperature_celsius", "n1", vendor] > 0
        assert found["xgen_gpu_power_watts", "n1", vendor] > 0
