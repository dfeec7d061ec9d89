"""The stand-in native libraries, and a machine's ``/dev`` and ``/sys`` made of files."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.native.build import build_amdsmi, build_nvml
from tests.hardware.lab import Lab


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    nvml, rocm = tmp_path_factory.mktemp("nvml"), tmp_path_factory.mktemp("rocm")
    build_nvml(nvml)
    build_amdsmi(rocm)
    return Lab(nvml, rocm)


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that other users can look into, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("dev/dri", "dev/shm", "sys/bus/pci/devices", "sys/bus/pci/drivers"):
            Path(folder, name).mkdir(parents=True)
        yield Path(folder)


@pytest.fixture
def plug(root: Path) -> Callable[..., None]:
    """Put a card on the bus of ``root``."""

    def plug(address: str, vendor: str, kind: str, driver: str | None = None) -> None:
        card = root / "sys/bus/pci/devices" / address
        card.mkdir()
        (card / "vendor").write_text(f"{vendor}\n")
        (card / "class").write_text(f"{kind}\n")
        if driver is not None:
            bound = root / "sys/bus/pci/drivers" / driver
            bound.mkdir(exist_ok=True)
            (card / "driver").symlink_to(os.path.relpath(bound, card))

    return plug
