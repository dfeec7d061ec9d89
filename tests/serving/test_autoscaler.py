"""What Ray's autoscaler is told, as Ray takes it."""

from dataclasses import replace

from ray._private.label_utils import validate_label_selector

from tests.serving.test_awaiting import TYPES
from xgen_ray.serving.autoscaler import demand_of


def test_each_node_is_a_bundle_that_takes_it_whole_with_the_labels_it_must_have() -> None:
    bundles, selectors = demand_of({"cpu": 1, "amd": 2}, TYPES)
    assert bundles == [{"CPU": 8, "amd_rdna": 1, "gfx1151": 1}] * 2 + [{"CPU": 8, "cpu_node": 1}]
    assert selectors == [{"xgen-ray/gpu-type": "amd_rdna"}] * 2 + [{}]
    assert [validate_label_selector(one) for one in selectors] == [None] * 3, "Ray has nothing against them"


def test_labels_tell_types_with_the_same_resources_apart() -> None:
    amd = TYPES["amd"]
    larger = replace(amd, name="larger", labels={**amd.labels, "xgen-ray/gpu-memory": "48g"})
    _, selectors = demand_of({"amd": 1, "larger": 1}, {**TYPES, "larger": larger})
    assert [one["xgen-ray/gpu-memory"] for one in selectors] == ["24g", "48g"]
    assert all("xgen-ray/ram" not in one for one in selectors)


def test_nothing_is_a_demand_as_well() -> None:
    assert demand_of({}, TYPES) == ([], [])
