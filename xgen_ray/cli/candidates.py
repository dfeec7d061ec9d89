"""The backends that placement weighed, as a table: ``plan`` and a refused ``load`` show it alike."""

from collections.abc import Sequence

from rich.table import Table

from xgen_ray.cli import output
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import CandidateReport


def candidate_table(candidates: Sequence[CandidateReport]) -> Table:
    """Return one row a backend, in the order in which they were weighed."""
    result = output.table("BACKEND", "FITS", "NEEDS", "WHY")
    for candidate in candidates:
        needs = gib(candidate.needs_bytes) if candidate.needs_bytes is not None else None
        result.add_row(
            output.cell(candidate.backend.value, "bold" if candidate.fits else ""),
            output.cell("yes", "green") if candidate.fits else output.cell("no"),
            output.cell(needs),
            output.cell("; ".join(candidate.reasons)),
        )
    return result
