"""Where a model goes, decided on data: backends as rows, memory bills, budgets, plans and refusals.

Pure functions: no process, socket, clock or file. Every answer, yes or no, carries its reasons.
"""

from xgen_ray.placement.budget import budgets
from xgen_ray.placement.choose import available_backends, model_name, plan, recommend
from xgen_ray.placement.claims import (
    RAM,
    Claim,
    Outstanding,
    claims_of,
    gpu_key,
    threads_of,
    with_outstanding,
)
from xgen_ray.placement.configured import ProfileSettings
from xgen_ray.placement.estimates import Observation, model_key, observe
from xgen_ray.placement.exclusions import Exclusion, node_kind
from xgen_ray.placement.fleet import plan_fleet
from xgen_ray.placement.footprint import footprint
from xgen_ray.placement.nodetypes import AskedNode, NodeDemand, NodeType, node_demand
from xgen_ray.placement.options import option_faults
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.profiles import PROFILES, ProfileRow
from xgen_ray.placement.rows import BACKENDS, PREFERENCE, VLLM_ROCM_GFX
from xgen_ray.placement.score import Score
from xgen_ray.placement.sizes import gib
from xgen_ray.placement.tags import device_classes
from xgen_ray.placement.types import (
    Backend,
    BackendRow,
    BackendStatus,
    Candidate,
    DeviceAPI,
    DeviceBudget,
    Engine,
    EngineDevice,
    EngineOptions,
    Footprint,
    FootprintItem,
    GPUNeed,
    GPUVerdict,
    Plan,
    ProfileNote,
    Refusal,
    ResolvedOptions,
)
from xgen_ray.placement.verdicts import Assignment, FleetPlan, FleetRefusal, NodeVerdict
from xgen_ray.placement.views import IdleModel, NodeView

__all__ = [
    "BACKENDS",
    "DEFAULT_POLICY",
    "PREFERENCE",
    "PROFILES",
    "RAM",
    "VLLM_ROCM_GFX",
    "AskedNode",
    "Assignment",
    "Backend",
    "BackendRow",
    "BackendStatus",
    "Candidate",
    "Claim",
    "DeviceAPI",
    "DeviceBudget",
    "Engine",
    "EngineDevice",
    "EngineOptions",
    "Exclusion",
    "FleetPlan",
    "FleetRefusal",
    "Footprint",
    "FootprintItem",
    "GPUNeed",
    "GPUVerdict",
    "IdleModel",
    "NodeDemand",
    "NodeType",
    "NodeVerdict",
    "NodeView",
    "Observation",
    "Outstanding",
    "PlacementPolicy",
    "Plan",
    "ProfileNote",
    "ProfileRow",
    "ProfileSettings",
    "Refusal",
    "ResolvedOptions",
    "Score",
    "available_backends",
    "budgets",
    "claims_of",
    "device_classes",
    "footprint",
    "gib",
    "gpu_key",
    "model_key",
    "model_name",
    "node_demand",
    "node_kind",
    "observe",
    "option_faults",
    "plan",
    "plan_fleet",
    "recommend",
    "threads_of",
    "with_outstanding",
]
