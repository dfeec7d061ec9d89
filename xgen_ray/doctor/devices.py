"""GPUs as the kernel shows them: cards on the PCI bus, and the files that they are used through."""

import grp
import os
import re
import stat
from pathlib import Path

from xgen_ray.doctor.facts import PCIGPU, DeviceFile
from xgen_ray.doctor.system import may

_VENDORS = {"0x10de": "nvidia", "0x1002": "amd"}
# Display controllers, and processing accelerators (which some compute cards are).
_GPU_CLASSES = ("0x03", "0x12")
_PATTERNS = ("dev/kfd", "dev/dri/renderD*", "dev/nvidia*")
# Of NVIDIA's files those that compute goes through, not those of displays and of video.
_NVIDIA = re.compile(r"^nvidia(\d+|ctl|-uvm)$")


def read_pci_gpus(root: Path) -> tuple[PCIGPU, ...] | None:
    """NVIDIA's and AMD's GPUs on the bus, whether or not a driver holds them; None if it cannot be read."""
    bus = root / "sys/bus/pci/devices"
    try:
        addresses = sorted(entry.name for entry in bus.iterdir())
    except OSError:
        return None
    found = []
    for address in addresses:
        vendor = _vendor(bus / address)
        try:
            kind = (bus / address / "class").read_text().strip()
        except OSError:
            continue
        if vendor is not None and kind.startswith(_GPU_CLASSES):
            driver = bus / address / "driver"
            found.append(PCIGPU(address, vendor, driver.resolve().name if driver.exists() else None))
    return tuple(found)


def read_device_files(root: Path) -> tuple[DeviceFile, ...]:
    """The device files of GPUs that are there, and whether this process may use them."""
    paths = sorted(path for pattern in _PATTERNS for path in root.glob(pattern))
    return tuple(
        _device_file(path, root)
        for path in paths
        if not path.name.startswith("nvidia") or _NVIDIA.match(path.name)
    )


def _device_file(path: Path, root: Path) -> DeviceFile:
    name = f"/{path.relative_to(root)}"
    usable = may(path, os.R_OK | os.W_OK)
    vendor = _vendor(root / "sys/class/drm" / path.name / "device")
    try:
        status = path.stat()
    except OSError:
        return DeviceFile(name, usable, vendor=vendor)
    return DeviceFile(name, usable, _group_name(status.st_gid), stat.S_IMODE(status.st_mode), vendor)


def _vendor(device: Path) -> str | None:
    """Whose device it is; None where it cannot be read or is neither NVIDIA's nor AMD's."""
    try:
        return _VENDORS.get((device / "vendor").read_text().strip())
    except OSError:
        return None


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        # A container without the host's group of that number.
        return str(number)
