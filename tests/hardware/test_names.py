"""PCI addresses in one spelling, and software renderers by name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgen_ray.hardware import is_software_renderer, normalise_pci

SAMPLES = Path(__file__).parents[1] / "samples" / "hardware"


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("0000:c1:00.0", "0000:c1:00.0"),
        ("00000000:C1:00.0", "0000:c1:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("c1:00.0", "0000:c1:00.0"),
        ("0000:c1:00", "0000:c1:00.0"),
        (" 0002:41:1f.7 ", "0002:41:1f.7"),
        ("", None),
        ("N/A", None),
        ("0000:c1:00.8", None),
        (None, None),
        (17, None),
    ],
)
def test_normalise_pci(address: object, normal: str | None) -> None:
    assert normalise_pci(address) == normal


@given(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
def test_every_spelling_of_an_address_is_one_address(
    domain: int, bus: int, device: int, function: int
) -> None:
    normal = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
    assert normalise_pci(f"{domain:08X}:{bus:02X}:{device:02X}.{function}") == normal
    assert normalise_pci(normal) == normal


def device_lines(sample: str) -> list[str]:
    lines = (SAMPLES / sample).read_text().splitlines()
    return [line.strip() for line in lines if "Vulkan0:" in line or "deviceName" in line]


@pytest.mark.parametrize("sample", ["llama-server-vulkan-llvmpipe.txt", "vulkaninfo-llvmpipe.txt"])
def test_what_real_programs_print_for_llvmpipe(sample: str) -> None:
    lines = device_lines(sample)
    assert len(lines) == 1
    assert is_software_renderer(lines[0])


@pytest.mark.parametrize(
    "name",
    [
        "llvmpipe (LLVM 15.0.6, 256 bits)",
        "LAVAPIPE",
        "SwiftShader Device (LLVM 10.0.0)",
        "Google SwiftShader",
        "Software Rasterizer",
        "software-rasterizer",
        "Microsoft Basic Render Driver",
        "Apple Software Renderer",
        "Direct3D WARP",
        "softpipe",
    ],
)
def test_software_renderers(name: str) -> None:
    assert is_software_renderer(name)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090",
        "AMD Radeon RX 7900 XTX (RADV NAVI31)",
        "AMD Radeon Graphics (RADV GFX1151)",
        "Intel(R) Arc(tm) A770 Graphics (DG2)",
        "Apple M2 Max",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Virtio-GPU Venus (NVIDIA RTX A6000)",
        "",
    ],
)
def test_real_gpus_are_not(name: str) -> None:
    assert not is_software_renderer(name)
