"""What placement weighed, as tables: ``plan`` and a refused ``load`` show it alike."""

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from xgen_ray.cli import output
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import CandidateReport, GPUVerdictReport, VerdictReport

# More nodes than this that say the same are counted, not named.
_NAMED = 3

# A GPU, or several of one name, and what each backend says of it.
_Card = tuple[str, tuple[tuple[str, GPUVerdictReport], ...]]


def weighed(verdicts: Sequence[VerdictReport], candidates: Sequence[CandidateReport]) -> list[Table]:
    """Return the tables that tell why and why not: the nodes, then the backends of each, then its GPUs.

    One node needs no table of nodes, unless its own word is all that there is.
    """
    tables = []
    if len(verdicts) > 1 or (verdicts and not candidates):
        tables.append(_node_table(verdicts))
    if candidates:
        tables.append(candidate_table(candidates, of_several=len(verdicts) > 1))
    # A plan for this machine alone has no nodes.
    looked = [one for verdict in verdicts for one in verdict.candidates] or candidates
    if any(candidate.gpus for candidate in looked):
        tables.append(_gpu_table(looked, of_several=len(verdicts) > 1))
    return tables


def candidate_table(candidates: Sequence[CandidateReport], *, of_several: bool = False) -> Table:
    """Return one row a backend, in the order in which they were weighed.

    Where there are several nodes (``of_several``: in the fleet, if not in these rows), they are the first
    column; those that answer alike share their rows.
    """
    by_node = _by_node(candidates)
    columns = ("BACKEND", "FITS", "NEEDS", "WHY")
    if len(by_node) == 1 and not of_several:
        result = output.table(*columns)
        for candidate in candidates:
            result.add_row(*_cells(candidate))
        return result
    result = output.table("NODE", *columns, folded=("NODE",))
    alike: dict[tuple[CandidateReport, ...], list[str]] = {}
    for node, told in by_node.items():
        said = tuple(candidate.model_copy(update={"node": None}) for candidate in told)
        alike.setdefault(said, []).append(node or "-")
    for said, nodes in alike.items():
        for candidate in said:
            result.add_row(output.cell(names(nodes)), *_cells(candidate))
    return result


def _by_node(candidates: Sequence[CandidateReport]) -> dict[str | None, list[CandidateReport]]:
    by_node: dict[str | None, list[CandidateReport]] = {}
    for candidate in candidates:
        by_node.setdefault(candidate.node, []).append(candidate)
    return by_node


def names(nodes: Iterable[str]) -> str:
    """Return the names in a row: a few of them, the others as a number."""
    known = list(nodes)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(known[:_NAMED]) + more


def _gpu_table(candidates: Sequence[CandidateReport], *, of_several: bool) -> Table:
    """Return a row for what each backend says of each GPU; GPUs and nodes that hear the same share theirs."""
    alike: dict[tuple[_Card, ...], list[str]] = {}
    for node, told in _by_node(candidates).items():
        alike.setdefault(_cards(told), []).append(node or "-")
    columns = ("NODE",) if of_several else ()
    result = output.table(*columns, "GPU", "BACKEND", "FITS", "WHY", folded=("NODE", "GPU"))
    for cards, nodes in alike.items():
        for card, verdicts in cards:
            for backend, gpu in verdicts:
                result.add_row(
                    *((output.cell(names(nodes)),) if of_several else ()),
                    output.cell(card, "bold" if gpu.chosen else ""),
                    output.cell(backend, "bold" if gpu.chosen else ""),
                    _fits(gpu.fits),
                    output.cell(gpu.reason),
                )
    return result


def _cards(candidates: Sequence[CandidateReport]) -> tuple[_Card, ...]:
    """Return the GPUs of one node; the ``id`` is left out of what is said of them."""
    said: dict[tuple[int, str], list[tuple[str, GPUVerdictReport]]] = {}
    for candidate in candidates:
        for gpu in candidate.gpus:
            verdict = candidate.backend.value, gpu.model_copy(update={"id": 0})
            said.setdefault((gpu.id, gpu.name), []).append(verdict)
    alike: dict[_Card, list[int]] = {}
    for (place, name), verdicts in sorted(said.items(), key=lambda item: item[0]):
        alike.setdefault((name, tuple(verdicts)), []).append(place)
    return tuple(
        (f"[{', '.join(map(str, places))}] {name}", verdicts) for (name, verdicts), places in alike.items()
    )


def _node_table(verdicts: Sequence[VerdictReport]) -> Table:
    result = output.table("NODE", "FITS", "WHY", folded=("NODE",))
    alike: dict[tuple[bool | None, tuple[str, ...]], list[str]] = {}
    for verdict in verdicts:
        alike.setdefault((verdict.fits, verdict.reasons), []).append(verdict.node)
    for (fits, reasons), nodes in alike.items():
        result.add_row(
            output.cell(names(nodes), "bold" if fits else ""), _fits(fits), output.cell("; ".join(reasons))
        )
    return result


def _cells(candidate: CandidateReport) -> tuple[Text, Text, Text, Text]:
    needs = gib(candidate.needs_bytes) if candidate.needs_bytes is not None else None
    return (
        output.cell(candidate.backend.value, "bold" if candidate.fits else ""),
        _fits(candidate.fits),
        output.cell(needs),
        output.cell("; ".join(candidate.reasons)),
    )


def _fits(fits: bool | None) -> Text:
    """Return the word for it; a dash where nobody has tried."""
    if fits is None:
        return output.cell(None)
    return output.cell("yes", "green") if fits else output.cell("no")
