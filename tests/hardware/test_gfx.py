"""Which AMD chips are what, and which spellings are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgen_ray.hardware import GFX_FAMILIES, GPUType, classify_gfx, parse_gfx

CDNA, RDNA, UNKNOWN = GPUType.AMD_CDNA, GPUType.AMD_RDNA, GPUType.UNKNOWN


@pytest.mark.parametrize(
    ("gfx", "gpu_type", "integrated"),
    [
        # gfx9 is not all CDNA: Vega is neither.
        ("gfx900", UNKNOWN, False),
        ("gfx904", UNKNOWN, False),
        ("gfx906", UNKNOWN, False),
        ("gfx902", UNKNOWN, True),
        ("gfx909", UNKNOWN, True),
        ("gfx90c", UNKNOWN, True),
        ("gfx908", CDNA, False),
        ("gfx90a", CDNA, False),
        ("gfx942", CDNA, None),
        ("gfx950", CDNA, False),
        # gfx12 is not all RDNA: gfx1250 is the Instinct after CDNA 4.
        ("gfx1250", CDNA, False),
        ("gfx1200", RDNA, False),
        ("gfx1201", RDNA, False),
        ("gfx1010", RDNA, False),
        ("gfx1030", RDNA, False),
        ("gfx1034", RDNA, False),
        ("gfx1033", RDNA, True),
        ("gfx1035", RDNA, True),
        ("gfx1036", RDNA, True),
        ("gfx1100", RDNA, False),
        ("gfx1101", RDNA, False),
        ("gfx1102", RDNA, False),
        ("gfx1103", RDNA, True),
        ("gfx1150", RDNA, True),
        ("gfx1151", RDNA, True),
        ("gfx1152", RDNA, True),
        ("gfx1153", RDNA, True),
    ],
)
def test_known_chips(gfx: str, gpu_type: GPUType, integrated: bool | None) -> None:
    row = classify_gfx(gfx)
    assert (row.gpu_type, row.integrated) == (gpu_type, integrated)
    assert row.family is not None


def test_vega_explains_why_it_has_no_type() -> None:
    assert classify_gfx("gfx906").note == "gfx: gfx906 is GCN 5 (Vega), neither RDNA nor CDNA"


@pytest.mark.parametrize("gfx", ["gfx1300", "gfx9ff", "gfx1104", "gfx999"])
def test_an_unknown_chip_is_not_guessed_from_its_first_digits(gfx: str) -> None:
    row = classify_gfx(gfx)
    assert (row.gpu_type, row.family, row.integrated) == (UNKNOWN, None, None)
    assert row.note is not None
    assert gfx in row.note


def test_no_chip_is_in_two_families() -> None:
    ids = [gfx for family in GFX_FAMILIES for gfx in family.ids]
    assert len(ids) == len(set(ids))
    assert all(parse_gfx(gfx) == (gfx, None) for gfx in ids)


@pytest.mark.parametrize(
    "value",
    [
        "gfxffffffffffffffff",
        "4433",
        4433,
        "N/A",
        "",
        None,
        "gfx",
        "gfx11",
        "GFX1151",
        "gfx1151 ",
        "gfx11510",
        "1151",
    ],
)
def test_what_is_no_gfx_id_is_refused_with_the_value_in_the_note(value: object) -> None:
    gfx, note = parse_gfx(value)
    assert gfx is None
    assert note is not None
    assert repr(value) in note


@pytest.mark.parametrize(
    ("decimal", "really"), [("gfx4433", "gfx1151"), ("gfx2304", "gfx900"), ("gfx4352", "gfx1100")]
)
def test_a_decimal_from_an_old_library_is_refused_and_recognised(decimal: str, really: str) -> None:
    gfx, note = parse_gfx(decimal)
    assert gfx is None
    assert note is not None
    assert really in note


@given(st.text(max_size=12) | st.from_regex(r"gfx[0-9a-f]{1,6}", fullmatch=True))
def test_an_accepted_id_is_well_formed_and_unchanged(value: str) -> None:
    gfx, note = parse_gfx(value)
    assert (gfx is None) != (note is None)
    if gfx is not None:
        assert gfx == value
        assert re.fullmatch(r"gfx[0-9a-f]{3,4}", gfx)
        classify_gfx(gfx)
