"""AMD's gfx ids: which are well formed, and what each stands for."""

import re
from dataclasses import dataclass

from xgen_ray.hardware.types import GPUType

_WELL_FORMED = re.compile(r"gfx[0-9a-f]{3,4}")


@dataclass(frozen=True, slots=True)
class GfxFamily:
    """A row of the table: chips that one name and one GPU type fit.

    ``integrated`` is True for chips that only exist inside a processor, False for those that only
    exist on a card, None where the id alone does not tell.
    """

    name: str
    gpu_type: GPUType
    ids: frozenset[str]
    integrated: bool | None


def _family(name: str, gpu_type: GPUType, ids: str, *, integrated: bool | None) -> GfxFamily:
    return GfxFamily(name, gpu_type, frozenset(f"gfx{part}" for part in ids.split()), integrated)


# GCN is older than the split into RDNA (graphics) and CDNA (compute) and belongs to neither: its type
# is UNKNOWN although the chip is known. Exact ids, no prefixes: gfx9 covers Vega and CDNA, gfx12 covers
# RDNA 4 and Instinct.
GFX_FAMILIES: tuple[GfxFamily, ...] = (
    _family("GCN (Polaris)", GPUType.UNKNOWN, "803", integrated=False),
    _family("GCN 5 (Vega)", GPUType.UNKNOWN, "900 904 906", integrated=False),
    _family("GCN 5 (Vega APU)", GPUType.UNKNOWN, "902 909 90c", integrated=True),
    _family("CDNA", GPUType.AMD_CDNA, "908 90a 950", integrated=False),
    _family("CDNA 3", GPUType.AMD_CDNA, "942", integrated=None),  # MI300X is a card, MI300A an APU
    _family("Instinct after CDNA 4", GPUType.AMD_CDNA, "1250", integrated=False),
    _family("RDNA 1", GPUType.AMD_RDNA, "1010 1011 1012", integrated=False),
    _family("RDNA 1 APU", GPUType.AMD_RDNA, "1013", integrated=True),
    _family("RDNA 2", GPUType.AMD_RDNA, "1030 1031 1032 1034", integrated=False),
    _family("RDNA 2 APU", GPUType.AMD_RDNA, "1033 1035 1036", integrated=True),
    _family("RDNA 3", GPUType.AMD_RDNA, "1100 1101 1102", integrated=False),
    _family("RDNA 3 APU", GPUType.AMD_RDNA, "1103", integrated=True),
    _family("RDNA 3.5 APU", GPUType.AMD_RDNA, "1150 1151 1152 1153", integrated=True),
    _family("RDNA 4", GPUType.AMD_RDNA, "1200 1201", integrated=False),
)

_FAMILY_OF = {gfx: family for family in GFX_FAMILIES for gfx in family.ids}


@dataclass(frozen=True, slots=True)
class GfxClass:
    """What a gfx id stands for. ``note`` explains an UNKNOWN type, and is None otherwise."""

    gpu_type: GPUType
    family: str | None = None
    integrated: bool | None = None
    note: str | None = None


def classify_gfx(gfx: str) -> GfxClass:
    """The type of an AMD GPU by its gfx id. An id that is not in the table is UNKNOWN, never guessed."""
    family = _FAMILY_OF.get(gfx)
    if family is None:
        return GfxClass(GPUType.UNKNOWN, note=f"gfx: {gfx} is not in this version's table of AMD GPUs")
    note = None
    if family.gpu_type is GPUType.UNKNOWN:
        note = f"gfx: {gfx} is {family.name}, neither RDNA nor CDNA"
    return GfxClass(family.gpu_type, family.name, family.integrated, note)


def parse_gfx(value: object) -> tuple[str | None, str | None]:
    """A gfx id as a vendor library spells it -> ``(id, None)``, or ``(None, why it was refused)``.

    Old libraries print the number in decimal (``4433`` or ``gfx4433`` for gfx1151); that is refused
    rather than decoded, since a decimal can look like the id of another chip.
    """
    if not isinstance(value, str) or not _WELL_FORMED.fullmatch(value):
        return None, f"gfx: {value!r} is not a gfx id; update ROCm and its amdsmi package"
    digits = value.removeprefix("gfx")
    if value not in _FAMILY_OF and digits.isdecimal() and f"gfx{int(digits):x}" in _FAMILY_OF:
        return None, (
            f"gfx: {value!r} reads like gfx{int(digits):x} printed in decimal, as old libraries do; "
            "update ROCm and its amdsmi package"
        )
    return value, None
