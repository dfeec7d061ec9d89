"""PCI addresses in one spelling, whoever printed them."""

import re

_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?")


def normalise_pci(address: object) -> str | None:
    """``00000000:C1:00.0``, ``c1:00.0`` and ``0000:c1:00`` -> ``0000:c1:00.0``; None for anything else."""
    if not isinstance(address, str):
        return None
    match = _ADDRESS.fullmatch(address.strip().lower())
    if match is None:
        return None
    domain, bus, device, function = (int(part or "0", 16) for part in match.groups())
    return f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
