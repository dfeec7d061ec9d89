"""HTTP: the OpenAI gateway and the management API. No Ray: it talks to the Protocols in ``contracts``."""

from xgen_ray.api.contracts import ControlPlane, Dispatcher
from xgen_ray.api.gateway import Gateway, GatewayLimits
from xgen_ray.api.guard import LocalGuard
from xgen_ray.api.key_file import KeyFile
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.management import create_management_app
from xgen_ray.api.page import PageFiles
from xgen_ray.api.relay import RetryLimits

__all__ = [
    "ApiKeys",
    "ControlPlane",
    "Dispatcher",
    "Gateway",
    "GatewayLimits",
    "KeyFile",
    "LocalGuard",
    "PageFiles",
    "RetryLimits",
    "create_management_app",
]
