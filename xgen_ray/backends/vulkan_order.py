"""Which of the drivers' devices an engine's Vulkan devices are, found out by asking the engine.

``GGML_VK_VISIBLE_DEVICES`` takes positions among all devices of all drivers. Unless it is set, llama.cpp
lists fewer: software renderers are left out, and a GPU that two drivers have is listed once. What it lists is
in the order of those positions, and named by what the driver calls it.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Final

from xgen_ray.backends.probe import Answer, ask, parse_devices
from xgen_ray.placement.types import EngineDevice

VARIABLE: Final = "GGML_VK_VISIBLE_DEVICES"
_NO_SUCH_DEVICE: Final = "Invalid device index"
# A machine has a few; each costs a run of the engine.
_MOST: Final = 64


async def vulkan_positions(
    command: Sequence[str], env: Mapping[str, str], devices: Sequence[str]
) -> tuple[int, ...] | None:
    """The position of each of ``devices``, which are named as the engine lists them under ``env``.

    None when that cannot be known for sure: never a guess. What is returned has been tried: an engine that
    is given these positions and no other lists the same devices, in this order.
    """
    listed = await _listed(command, env)
    at = [place for name in devices for place, one in enumerate(listed) if one.name == name]
    if len(at) != len(devices):
        return None
    limits = env.get(VARIABLE)
    places = await _found_out(command, env, listed) if limits is None else _read(limits)
    if places is None or len(places) != len(listed):
        return None
    positions = tuple(places[number] for number in at)
    limited = await _listed(command, _limited(env, positions))
    wanted = [listed[number].description for number in at]
    return positions if [one.description for one in limited] == wanted else None


def embedding(listed: Sequence[EngineDevice], everything: Sequence[EngineDevice]) -> tuple[int, ...] | None:
    """Where in ``everything`` those ``listed`` are; None if only some of the devices of one name are."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, device in enumerate(everything):
        places[device.description].append(place)
    counts = Counter(device.description for device in listed)
    if any(len(places[name]) != count for name, count in counts.items()):
        return None
    return tuple(places[device.description].pop(0) for device in listed)


async def _found_out(
    command: Sequence[str], env: Mapping[str, str], listed: Sequence[EngineDevice]
) -> tuple[int, ...] | None:
    """Show the engine one device more at a time, until there is none: that is all of them."""
    everything: tuple[EngineDevice, ...] = ()
    for count in range(len(listed), _MOST):
        answer = await ask(command, ["--list-devices"], _limited(env, range(count)))
        devices = parse_devices(answer.lines)
        if len(devices) != count or answer.failure is not None:
            return embedding(listed, everything) if _refused(answer) else None
        everything = devices
    return None


def _refused(answer: Answer) -> bool:
    return any(_NO_SUCH_DEVICE in line for line in answer.lines)


def _read(limits: str) -> tuple[int, ...]:
    """The positions that an operator has set, up to the first that is no number, as llama.cpp reads them."""
    return tuple(map(int, takewhile(str.isdecimal, limits.replace(",", " ").split())))


def _limited(env: Mapping[str, str], positions: Sequence[int]) -> Mapping[str, str]:
    return {**env, VARIABLE: ",".join(map(str, positions))}


async def _listed(command: Sequence[str], env: Mapping[str, str]) -> tuple[EngineDevice, ...]:
    answer = await ask(command, ["--list-devices"], env)
    return parse_devices(answer.lines) if answer.failure is None else ()
