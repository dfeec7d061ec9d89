"""How many replicas a model's load asks for. Pure: time comes in.

Serve's own autoscaling counts calls on its handles, which requests never touch here, and starts replicas
before anybody knows whether they fit. So control decides on what the engines report, and a new replica has
its place and its lease before it starts.
"""

from dataclasses import dataclass
from math import ceil

from xgen_ray.schema import LoadRequest, Scaling


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the engines of a model, running and waiting, and how many a replica computes at once."""

    ongoing: int
    slots: int


@dataclass(frozen=True, slots=True)
class Trend:
    """``since`` when the load has asked for more replicas than there should be (``direction`` 1) or for
    fewer (-1), without a break; ``most`` is the most that it asked for meanwhile.
    """

    direction: int = 0
    since: float = 0.0
    most: int = 0


STEADY = Trend()


def first_replicas(request: LoadRequest) -> int:
    """How many a load starts with. One at least: that is how it shows that it works."""
    if request.scaling is None:
        return request.replicas
    return needed(request.scaling, Load(0, 1))


def needed(scaling: Scaling, load: Load) -> int:
    """The replicas that ``load`` asks for and those to keep warm, between one and the most allowed."""
    target = scaling.target_ongoing_requests or max(1, load.slots)
    asked = max(1, ceil(load.ongoing / target)) + scaling.keep_warm
    return min(scaling.max_replicas, max(scaling.min_replicas, asked))


def rescale(
    scaling: Scaling,
    wanted: int,
    load: Load,
    trend: Trend,
    at: float,
    *,
    coming: int = 0,
    elsewhere: int = 0,
) -> tuple[int, Trend]:
    """The replicas there should be from now on, and the trend to come with next time.

    Growth goes to what the load asks for now, once it has asked for more than there is throughout
    ``upscale_delay_s``. Shrinking goes to the most that it asked for throughout ``downscale_delay_s``.

    ``coming`` of the replicas are not ready yet: no load has reached them, so nothing shrinks before they
    have had the same time as others. ``elsewhere`` are those that others of the name are about to have, which
    will take their share.
    """
    asked = needed(scaling, load)
    if asked > wanted:
        asked = max(wanted, asked - elsewhere)
    direction = (asked > wanted) - (asked < wanted)
    if direction == 0 or (direction < 0 and coming > 0):
        return wanted, STEADY
    if direction != trend.direction:
        trend = Trend(direction, at, asked)
    trend = Trend(direction, trend.since, max(trend.most, asked))
    delay_s = scaling.upscale_delay_s if direction > 0 else scaling.downscale_delay_s
    if at - trend.since < delay_s:
        return wanted, trend
    return (asked if direction > 0 else trend.most), STEADY


def may_sleep(scaling: Scaling, load: Load, idle_s: float) -> bool:
    """Whether nobody has needed the model for so long that it may let go of everything."""
    return scaling.min_replicas == 0 and load.ongoing == 0 and idle_s >= scaling.ttl_s
