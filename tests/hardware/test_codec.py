"""Snapshots survive JSON, and nothing else passes for one."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.errors import InvalidRequest
from xgen_ray.hardware import GPUType, NodeSnapshot, snapshot_from_json, snapshot_to_json


@settings(max_examples=15)
@given(st.builds(NodeSnapshot, taken_at=st.floats(0, 4e9)))
def test_round_trip(snapshot: NodeSnapshot) -> None:
    assert snapshot_from_json(snapshot_to_json(snapshot)) == snapshot


@settings(max_examples=5)
@given(st.builds(NodeSnapshot, taken_at=st.floats(0, 4e9)))
def test_types_are_written_as_their_values(snapshot: NodeSnapshot) -> None:
    gpus = json.loads(snapshot_to_json(snapshot))["detection"]["gpus"]
    assert [gpu["gpu_type"] for gpu in gpus] == [gpu.gpu_type.value for gpu in snapshot.detection.gpus]


def test_gpu_types_are_the_agreed_words() -> None:
    assert [str(kind) for kind in GPUType] == [
        "nvidia", "amd_rdna", "amd_cdna", "apple_mps", "cpu", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"host": 1}', "not json"])
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a node snapshot"):
        snapshot_from_json(text)
