"""A llama-server built for GPUs that are not there: it computes on the CPU and says what a real one would.

    python gpu_llama_server.py BUILD.json ARGUMENTS...

BUILD.json has the fields of ``Build``. Questions (--version, --help, --list-devices) are answered as such a
build answers them for its cards. Else it sees the cards that the visibility variables leave it, as the
vendor's runtime would; ends like a real one when it is told of a device that it does not see; notes its
command, its environment and its devices in ``launches``, and on each of its cards the memory that it would
take there; and becomes the bundled llama-server, without the flags that speak of GPUs.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_HELP = Path(__file__).parents[1] / "backends" / "samples" / "help_vulkan_build.txt"
# Of the variables for one device API, the first that is set counts.
_VISIBILITY: Mapping[str, tuple[str, ...]] = {
    "CUDA": ("CUDA_VISIBLE_DEVICES",),
    "ROCm": ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "Vulkan": ("GGML_VK_VISIBLE_DEVICES",),
}
# Each takes a value.
_DEVICE_FLAGS = frozenset({"--device", "--n-gpu-layers", "--gpu-layers", "--split-mode", "--main-gpu"})


@dataclass(frozen=True)
class Device:
    """A card as the build lists it. ``uuid`` is what CUDA's variable may name; ``held`` is the folder where
    the stand-in library of its vendor looks for what processes have of it.
    """

    uuid: str
    description: str
    total_mb: int
    free_mb: int
    held: str


@dataclass(frozen=True)
class Build:
    """``prefix`` is how it names its devices; ``takes_mb`` the memory that it takes of its cards together."""

    prefix: str
    takes_mb: int
    devices: tuple[Device, ...]
    launches: str


def read_build(path: Path) -> Build:
    fields = json.loads(path.read_text())
    return Build(**{**fields, "devices": tuple(Device(**device) for device in fields["devices"])})


def visible(build: Build, env: Mapping[str, str]) -> dict[str, Device]:
    """The devices that the process sees, by the names that it has for them."""
    found = list(build.devices)
    for variable in _VISIBILITY[build.prefix]:
        if variable in env:
            found = list(_named(build.devices, env[variable]))
            break
    return {f"{build.prefix}{number}": device for number, device in enumerate(found)}


def _named(devices: Sequence[Device], listed: str) -> Iterator[Device]:
    """Runtimes stop at the first name that is none."""
    for name in filter(None, listed.split(",")):
        by_uuid = [device for device in devices if device.uuid == name]
        if by_uuid:
            yield by_uuid[0]
        elif name.isdecimal() and int(name) < len(devices):
            yield devices[int(name)]
        else:
            return


def _wrong_index(build: Build, env: Mapping[str, str]) -> str | None:
    """llama.cpp takes no device at all where one is named that is not there."""
    named = env.get("GGML_VK_VISIBLE_DEVICES", "").split(",")
    return next((name for name in named if name.isdecimal() and int(name) >= len(build.devices)), None)


def without_device_flags(arguments: Sequence[str]) -> list[str]:
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in _DEVICE_FLAGS:
            next(words)
        else:
            kept.append(word)
    return kept


def main(path: str, *arguments: str) -> NoReturn:
    build = read_build(Path(path))
    if build.prefix == "Vulkan" and (wrong := _wrong_index(build, os.environ)) is not None:
        print(f"ggml_vulkan: Invalid device index {wrong} in GGML_VK_VISIBLE_DEVICES.")
        sys.exit(_print("Available devices:\n  (none)"))
    seen = visible(build, os.environ)
    if "--version" in arguments:
        sys.exit(_print(f"version: 6999 (stand-in for {build.prefix})\nbuilt with cc for x86_64-linux-gnu"))
    if "--help" in arguments:
        sys.exit(_print(_HELP.read_text()))
    if "--list-devices" in arguments:
        lines = [
            f"  {name}: {device.description} ({device.total_mb} MiB, {device.free_mb} MiB free)"
            for name, device in seen.items()
        ]
        sys.exit(_print("\n".join(["Available devices:", *(lines or ["  (none)"])])))
    wanted = arguments[arguments.index("--device") + 1] if "--device" in arguments else ",".join(seen)
    used = [name for name in wanted.split(",") if name != "none"]
    for name in used:
        if name not in seen:
            sys.exit(f"error: invalid device: {name}")
    launch = {
        "argv": arguments,
        "env": dict(os.environ),
        "visible": {name: device.description for name, device in seen.items()},
        "devices": used,
        "uuids": [seen[name].uuid for name in used],
    }
    (Path(build.launches) / f"{os.getpid()}.json").write_text(json.dumps(launch))
    for name in used:
        (Path(seen[name].held) / str(os.getpid())).write_text(str(build.takes_mb // len(used)))
    engine = [sys.executable, "-P", "-m", "xgen_ray.backends.bundled_llama_server"]
    os.execv(sys.executable, [*engine, *without_device_flags(arguments)])


def _print(text: str) -> int:
    print(text)
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
