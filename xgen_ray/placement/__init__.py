"""Where a model goes, decided on data: backends as rows, memory bills, budgets, plans and refusals.

Pure functions: no process, socket, clock or file. Every answer, yes or no, carries its reasons.
"""

from xgen_ray.placement.budget import budgets
from xgen_ray.placement.choose import available_backends, model_name, plan, recommend
from xgen_ray.placement.footprint import footprint
from xgen_ray.placement.policy import DEFAULT_POLICY, PlacementPolicy
from xgen_ray.placement.profiles import PROFILES, ProfileRow
from xgen_ray.placement.rows import BACKENDS, PREFERENCE, VLLM_ROCM_GFX
from xgen_ray.placement.sizes import gib
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
    Plan,
    ProfileNote,
    Refusal,
    ResolvedOptions,
)

__all__ = [
    "BACKENDS",
    "DEFAULT_POLICY",
    "PREFERENCE",
    "PROFILES",
    "VLLM_ROCM_GFX",
    "Backend",
    "BackendRow",
    "BackendStatus",
    "Candidate",
    "DeviceAPI",
    "DeviceBudget",
    "Engine",
    "EngineDevice",
    "EngineOptions",
    "Footprint",
    "FootprintItem",
    "PlacementPolicy",
    "Plan",
    "ProfileNote",
    "ProfileRow",
    "Refusal",
    "ResolvedOptions",
    "available_backends",
    "budgets",
    "footprint",
    "gib",
    "model_name",
    "plan",
    "recommend",
]
