import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tests.backends import fake_vulkan_build
from tests.backends.fake_vulkan_build import listed
from xgen_ray.backends.vulkan_order import embedding, vulkan_positions
from xgen_ray.placement.types import EngineDevice

Driven = dict[str, str]


def driven(name: str, kind: str, uuid: str, rank: str = "0") -> Driven:
    """One device as one driver has it."""
    return {"name": name, "kind": kind, "uuid": uuid, "rank": rank}


SOFTWARE = driven("llvmpipe (LLVM 15.0.6, 256 bits)", "cpu", "s")
CARD = driven("NVIDIA GeForce RTX 3060", "gpu", "a")
OTHER = driven("AMD Radeon RX 7900 XTX (RADV NAVI31)", "gpu", "b")
OTHER_TOO = driven("AMD Radeon RX 7900 XTX (RADV NAVI31)", "gpu", "c")
SECOND_DRIVER = driven("AMD Radeon RX 7900 XTX", "gpu", "b", "1")
TWICE_ALIKE = driven("NVIDIA GeForce RTX 3060", "gpu", "a", "1")


async def ask(
    folder: Path, devices: Sequence[Driven], names: Sequence[str], limits: str | None = None
) -> tuple[int, ...] | None:
    description = folder / "devices.json"
    description.write_text(json.dumps(devices))
    command = (sys.executable, "-S", "-P", fake_vulkan_build.__file__, str(description))
    env = {name: value for name, value in os.environ.items() if name != "GGML_VK_VISIBLE_DEVICES"}
    if limits is not None:
        env["GGML_VK_VISIBLE_DEVICES"] = limits
    return await vulkan_positions(command, env, names)


@pytest.mark.parametrize(
    ("devices", "names", "positions"),
    [
        pytest.param((SOFTWARE, CARD, OTHER), ("Vulkan1",), (2,), id="behind a software renderer"),
        pytest.param((OTHER, CARD, OTHER_TOO), ("Vulkan2", "Vulkan0"), (2, 0), id="two of one name"),
        # The second driver's device is left out, and the first driver's comes where it is enumerated.
        pytest.param((SECOND_DRIVER, CARD, OTHER), ("Vulkan1",), (2,), id="one GPU by two drivers"),
        pytest.param((CARD, TWICE_ALIKE), ("Vulkan0",), None, id="which of two drivers cannot be told"),
        pytest.param((SOFTWARE, CARD), ("Vulkan1",), None, id="gone"),
    ],
)
async def test_positions_count_what_the_engine_leaves_out(
    devices: tuple[Driven, ...], names: tuple[str, ...], positions: tuple[int, ...] | None, tmp_path: Path
) -> None:
    assert await ask(tmp_path, devices, names) == positions


@pytest.mark.parametrize(
    ("limits", "names", "positions"),
    [
        ("2,1", ("Vulkan1", "Vulkan0"), (1, 2)),
        ("1,1", ("Vulkan1",), (1,)),
        ("7", ("Vulkan0",), None),
    ],
)
async def test_an_operators_limits_hold(
    limits: str, names: tuple[str, ...], positions: tuple[int, ...] | None, tmp_path: Path
) -> None:
    assert await ask(tmp_path, (SOFTWARE, CARD, OTHER), names, limits) == positions


async def test_an_engine_that_heeds_no_variable_is_not_believed(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf.py"
    deaf.write_text("print('Available devices:\\n  Vulkan0: A (8 MiB, 8 MiB free)')\n")
    command = (sys.executable, "-S", str(deaf))
    assert await vulkan_positions(command, dict(os.environ), ("Vulkan0",)) is None


DRIVEN = st.builds(
    driven,
    name=st.sampled_from("ABC"),
    kind=st.sampled_from(["gpu", "gpu", "gpu", "cpu"]),
    uuid=st.sampled_from("12345"),
    rank=st.sampled_from("012"),
)


@given(st.lists(DRIVEN, max_size=8))
def test_what_is_found_out_is_true_whatever_the_drivers_enumerate(devices: list[Driven]) -> None:
    true = listed(devices, None)

    def engines(positions: Sequence[int]) -> list[EngineDevice]:
        return [
            EngineDevice(f"Vulkan{number}", devices[place]["name"]) for number, place in enumerate(positions)
        ]

    found = embedding(engines(true), engines(range(len(devices))))
    event("not for sure" if found is None else "known")
    assert found is None or list(found) == true
