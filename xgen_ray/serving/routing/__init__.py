"""Which engine should take a request: pure judgement over measured facts. No Ray, no I/O, no clock.

``Balancer`` is all that a router needs; the other modules are its parts:

    rules      what may be tuned, and the words for why an engine was taken
    speeds     how fast an engine has proven to be, by the number of requests it had
    health     who failed, and when it may try again
    affinity   sessions and shared prefixes: where the caches are
    facts      everything one router knows of one engine
    balancer   the choice
"""

from xgen_ray.serving.routing.balancer import Balancer
from xgen_ray.serving.routing.rules import Choice, RoutingRules, Why

__all__ = ["Balancer", "Choice", "RoutingRules", "Why"]
