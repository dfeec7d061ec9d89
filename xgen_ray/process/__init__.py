"""One child process: started, watched, listened to, and gone when its owner is. See README.md."""

from xgen_ray.process.failures import classify
from xgen_ray.process.logs import LogRing
from xgen_ray.process.ports import free_port
from xgen_ray.process.readiness import loading_deadline
from xgen_ray.process.supervisor import ChildProcess
from xgen_ray.process.types import Failure, FailureClass, LaunchSpec, Readiness

__all__ = [
    "ChildProcess",
    "Failure",
    "FailureClass",
    "LaunchSpec",
    "LogRing",
    "Readiness",
    "classify",
    "free_port",
    "loading_deadline",
]
