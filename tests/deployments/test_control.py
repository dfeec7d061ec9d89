"""What an operator says of placement is what control places by."""

import yaml

from deployments.control import policy_of
from tests.placement.builders import dense, device, host, strix_halo, there
from tests.placement.fleets import view
from xgen_ray.placement import (
    DEFAULT_POLICY,
    Backend,
    EngineOptions,
    FleetPlan,
    FleetRefusal,
    PlacementPolicy,
    plan_fleet,
)
from xgen_ray.placement.sizes import GIB
from xgen_ray.settings import ControlSettings

ROWS = """
profiles:
  - option: memory_bytes
    value: 9663676416
    device_apis: [vulkan]
    gfx: [gfx1151]
    reason: the desktop needs the rest
"""
VULKAN = there(
    Backend.LLAMA_SERVER_VULKAN, device("Vulkan0", "Radeon 8060S Graphics (RADV GFX1151)", 53 * GIB)
)
APU = view("apu", strix_halo(), on=host(96 * GIB), statuses=[VULKAN])


def placed(policy: PlacementPolicy) -> FleetPlan | FleetRefusal:
    return plan_fleet(dense(32), EngineOptions(), [APU], policy=policy)


def test_without_a_word_the_defaults_hold() -> None:
    assert policy_of(ControlSettings()) == DEFAULT_POLICY
    assert isinstance(placed(policy_of(ControlSettings())), FleetPlan)


def test_a_limit_on_an_apus_memory_refuses_a_model_with_the_number_and_why() -> None:
    settings = ControlSettings.model_validate(yaml.safe_load(ROWS))
    refusal = placed(policy_of(settings))
    assert isinstance(refusal, FleetRefusal)
    assert "a model may use 9.0 GiB of AMD Radeon Graphics" in refusal.message
    assert "memory_bytes in the configuration's profiles allows a model at most 9.0 GiB" in refusal.message
    assert "the desktop needs the rest" in refusal.message


def test_gfx_ids_for_vllm_leave_the_rows_alone() -> None:
    policy = policy_of(ControlSettings(vllm_rocm_gfx=("gfx1036",)))
    assert (policy.vllm_rocm_gfx, policy.profiles) == (frozenset({"gfx1036"}), DEFAULT_POLICY.profiles)
