"""A Vulkan build of llama-server that only lists devices, by llama.cpp's rules for which and in what order.

    python fake_vulkan_build.py DEVICES.json --list-devices

DEVICES.json holds what all drivers together enumerate: each with ``name``, ``kind`` ("gpu", or "cpu" for a
software renderer), ``uuid`` and ``rank`` (of two drivers for one GPU the lower is taken).
"""

# It is started many times over, so it imports next to nothing.
import json
import os
import sys


def listed(devices: list[dict[str, str]], limits: str | None) -> list[int]:
    """The positions of what llama.cpp lists, in its order; raises IndexError as it ends with an error."""
    if limits is not None:
        wanted = [int(word) for word in limits.replace(",", " ").split()]
        for position in wanted:
            if position >= len(devices):
                raise IndexError(position)
        return wanted
    found: list[int] = []
    for position, device in enumerate(devices):
        if device["kind"] != "gpu":
            continue
        same = next((other for other in found if devices[other]["uuid"] == device["uuid"]), None)
        if same is None:
            found.append(position)
        elif device["rank"] < devices[same]["rank"]:
            found.remove(same)
            found.append(position)
    return found


def main(path: str, question: str) -> None:
    assert question == "--list-devices"
    # Path would be one more import.
    with open(path) as file:  # noqa: PTH123
        devices = json.load(file)
    try:
        found = listed(devices, os.environ.get("GGML_VK_VISIBLE_DEVICES"))
    except IndexError as error:
        print(f"ggml_vulkan: Invalid device index {error} in GGML_VK_VISIBLE_DEVICES.", file=sys.stderr)
        found = []
    print("Available devices:")
    for number, position in enumerate(found):
        print(f"  Vulkan{number}: {devices[position]['name']} (8192 MiB, 8000 MiB free)")
    if not found:
        print("  (none)")


if __name__ == "__main__":
    main(*sys.argv[1:])
