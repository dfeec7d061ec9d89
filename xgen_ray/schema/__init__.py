"""What crosses HTTP and Ray between the API, control, the routers and the engines.

Management bodies are these models, unknown fields refused. Bodies on their way to an engine are not
here: they pass through untouched.
"""

from xgen_ray.schema.figures import FigurePoint, FiguresReport, Outcome, StreamFigures, TargetGroup
from xgen_ray.schema.models import (
    AwaitedNodes,
    EngineStatus,
    ExclusionReport,
    FailureReport,
    LogPage,
    ModelStatus,
    Phase,
    Progress,
    ReplicaStatus,
    StatusReport,
)
from xgen_ray.schema.nodes import (
    BackendReport,
    BackendsReport,
    DetectorLine,
    DrainReport,
    GPUReport,
    GPUsReport,
    LeaseReport,
    NodeReport,
    NodesReport,
)
from xgen_ray.schema.plans import (
    AssignmentReport,
    CandidateReport,
    FaultReport,
    FootprintLine,
    GPUVerdictReport,
    PlanReport,
    VerdictReport,
)
from xgen_ray.schema.requests import (
    ChangeKind,
    DeclaredChange,
    DrainRequest,
    LiftRequest,
    LoadRequest,
    Origin,
    ScaleRequest,
    Scaling,
)
from xgen_ray.schema.routed import NO_HINTS, Endpoint, PoolInfo, RequestHints, ServedModel
from xgen_ray.schema.wire import LOADED_PATTERN, NAME_PATTERN, POOL_PATTERN, Wire

__all__ = [
    "LOADED_PATTERN",
    "NAME_PATTERN",
    "NO_HINTS",
    "POOL_PATTERN",
    "AssignmentReport",
    "AwaitedNodes",
    "BackendReport",
    "BackendsReport",
    "CandidateReport",
    "ChangeKind",
    "DeclaredChange",
    "DetectorLine",
    "DrainReport",
    "DrainRequest",
    "Endpoint",
    "EngineStatus",
    "ExclusionReport",
    "FailureReport",
    "FaultReport",
    "FigurePoint",
    "FiguresReport",
    "FootprintLine",
    "GPUReport",
    "GPUVerdictReport",
    "GPUsReport",
    "LeaseReport",
    "LiftRequest",
    "LoadRequest",
    "LogPage",
    "ModelStatus",
    "NodeReport",
    "NodesReport",
    "Origin",
    "Outcome",
    "Phase",
    "PlanReport",
    "PoolInfo",
    "Progress",
    "ReplicaStatus",
    "RequestHints",
    "ScaleRequest",
    "Scaling",
    "ServedModel",
    "StatusReport",
    "StreamFigures",
    "TargetGroup",
    "VerdictReport",
    "Wire",
]
