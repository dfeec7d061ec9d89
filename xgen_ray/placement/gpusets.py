"""Which sets of GPUs are tried for a model, best first."""

from collections.abc import Sequence
from dataclasses import dataclass

from xgen_ray.hardware.types import GPUInfo
from xgen_ray.models.types import ModelFacts
from xgen_ray.placement.claims import takes_whole_cards
from xgen_ray.placement.devices import UsableGPU
from xgen_ray.placement.profiles import is_integrated
from xgen_ray.placement.types import BackendRow, DeviceBudget, Engine, EngineOptions

_IN_USE = "in use by another model, and cutting every layer takes whole cards"
_SLICE = "a MIG slice: an engine that is given one sees no other GPU, so name it alone"


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A GPU that a backend can use, with what a model may take of it."""

    usable: UsableGPU
    budget: DeviceBudget


GPUSet = tuple[Budgeted, ...]


def named_gpus(
    gpus: Sequence[GPUInfo], wanted: Sequence[int | str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The positions that ``wanted`` names, and a reason for each name that is none.

    A number is a place in the node's list of GPUs, the same that the API reports as ``id``: a vendor's own
    index would be ambiguous on a node with two vendors. A string is a UUID or a PCI address.
    """
    positions: list[int] = []
    reasons: list[str] = []
    for name in wanted:
        found = _position_of(gpus, name)
        if found is None:
            known = ", ".join(f"{index}: {gpu.device_name}" for index, gpu in enumerate(gpus)) or "none"
            reasons.append(f"there is no GPU {name} on this node (it has {known})")
        elif found in positions:
            reasons.append(f"GPU {name} is named twice")
        else:
            positions.append(found)
    return tuple(positions), tuple(reasons)


@dataclass(frozen=True, slots=True)
class Wish:
    """What decides which GPUs are tried. ``named`` are the positions that the user asked for; ``leased``
    those that other models use too, which nobody may have whole.
    """

    options: EngineOptions
    facts: ModelFacts
    named: tuple[int, ...] | None = None
    leased: frozenset[int] = frozenset()
    spread: bool = False


Sets = tuple[tuple[GPUSet, ...], tuple[str, ...]]


def gpu_sets(row: BackendRow, gpus: Sequence[Budgeted], wish: Wish) -> Sets:
    """The sets to try in order, or the reasons why there are none.

    Unless the wish names GPUs: the card with the least free memory that is enough (to spread: with the
    most), then several cards, then an integrated GPU.
    """
    if wish.named is not None:
        return _named_sets(row, gpus, wish, wish.named)
    if row.engine is Engine.VLLM:
        return _parallel_sets(gpus, wish)
    cards, integrated = _by_kind(gpus, wish.spread)
    split = wish.options.split_mode
    if split in (None, "none"):
        singles = [(item,) for item in cards]
        groups = [] if split == "none" else _largest([item for item in cards if not _is_slice(item)])
        return (*singles, *groups, *((item,) for item in integrated)), ()
    # A split was asked for, so every card takes part.
    everyone = _in_order(cards or integrated)
    everyone = tuple(item for item in everyone if not _is_slice(item)) or everyone[:1]
    if takes_whole_cards(row, split, len(everyone)):
        whole = tuple(item for item in everyone if item.usable.position not in wish.leased)
        # One alone is not cut, and so may be shared.
        everyone = whole or everyone[:1]
    return (everyone,), ()


def left_out(row: BackendRow, item: Budgeted, wish: Wish) -> str:
    """Why this GPU is in none of the sets, where others are."""
    if wish.named is not None:
        return "split_mode is none, and main_gpu is another one"
    if item.usable.position in wish.leased:
        return _IN_USE
    if _is_slice(item):
        return _SLICE
    if row.engine is not Engine.VLLM and is_integrated(item.usable.gpu):
        return "the model is divided among the cards"
    return "it takes equal GPUs, and others are more or have more memory free"


def _named_sets(row: BackendRow, gpus: Sequence[Budgeted], wish: Wish, named: Sequence[int]) -> Sets:
    options = wish.options
    at = {item.usable.position: item for item in gpus}
    missing = [position for position in named if position not in at]
    if missing:
        return (), tuple(f"it cannot use GPU {position}, which the options name" for position in missing)
    chosen = tuple(at[position] for position in named)
    if takes_whole_cards(row, options.split_mode, len(chosen)):
        shared = tuple(_shared(item) for item in chosen if item.usable.position in wish.leased)
        if shared:
            return (), shared
    if options.split_mode == "none" and len(chosen) > 1:
        chosen = (chosen[options.main_gpu or 0],)
    slices = tuple(_alone(item) for item in chosen if _is_slice(item))
    if slices and len(chosen) > 1:
        return (), slices
    if row.engine is Engine.VLLM:
        row_length = options.pipeline_parallel_size or 1
        if short := _too_few_layers(row_length, wish.facts):
            return (), (short,)
        if len(chosen) % row_length:
            return (), (
                f"pipeline_parallel_size is {row_length}, which does not divide the {len(chosen)} GPUs",
            )
        uneven = _uneven(len(chosen) // row_length, wish.facts)
        return ((), (uneven,)) if uneven else ((chosen,), ())
    return (chosen,), ()


def _parallel_sets(gpus: Sequence[Budgeted], wish: Wish) -> Sets:
    """Sets for tensor parallelism: GPUs of one model only, since the slowest sets the pace of all, and none
    that another model uses or that is a slice.
    """
    size, facts = wish.options.tensor_parallel_size, wish.facts
    row_length = wish.options.pipeline_parallel_size or 1
    if short := _too_few_layers(row_length, facts):
        return (), (short,)
    cards, integrated = _by_kind(gpus, wish.spread)
    kinds: dict[str, list[Budgeted]] = {}
    whole: dict[str, list[Budgeted]] = {}
    for item in (*cards, *integrated):
        kinds.setdefault(item.usable.gpu.device_name, []).append(item)
        if item.usable.position not in wish.leased and not _is_slice(item):
            whole.setdefault(item.usable.gpu.device_name, []).append(item)
    most = max((len(items) for items in whole.values()), default=0)
    if (size or 1) * row_length > max(most, 1 if kinds else 0) and (size is not None or row_length > 1):
        shared = tuple(_shared(item) for item in gpus if item.usable.position in wish.leased)
        slices = tuple(_alone(item) for item in gpus if _is_slice(item))
        asked = {"tensor_parallel_size": size, "pipeline_parallel_size": wish.options.pipeline_parallel_size}
        given = " and ".join(f"{name} is {value}" for name, value in asked.items() if value is not None)
        few = (
            f"{given}, but the node has at most {most} equal GPUs for it, and an engine is on one node alone"
        )
        return (), (few, *shared, *slices)
    if size is not None:
        uneven = _uneven(size, facts)
        if uneven:
            return (), (uneven,)
    several = [n for n in (2, 4, 8, 16) if n * row_length <= most and not _uneven(n, facts)]
    counts = [n * row_length for n in ([size] if size is not None else [1, *several])]
    sets: list[GPUSet] = []
    for count in counts:
        if count == 1:
            sets.extend((item,) for items in kinds.values() for item in items)
            continue
        for items in whole.values():
            if len(items) >= count:
                by_free = sorted(items, key=lambda item: (-item.budget.free_bytes, item.usable.position))
                sets.append(_in_order(by_free[:count]))
    return tuple(sets), ()


def _uneven(count: int, facts: ModelFacts) -> str | None:
    """Why vLLM cannot cut the model's layers over ``count`` GPUs: each takes as many heads, and as many of
    those that keep a cache, or a copy of one of them.
    """
    if facts.head_count is not None and facts.head_count % count:
        return f"the model's {facts.head_count} attention heads cannot be divided among {count} GPUs"
    for heads in sorted({heads for heads in facts.kv_heads or () if heads}):
        if max(heads, count) % min(heads, count):
            return (
                f"the model's {heads} key-value heads cannot be divided among {count} GPUs, nor copied evenly"
            )
    return None


def _too_few_layers(row_length: int, facts: ModelFacts) -> str | None:
    """vLLM parts layers unevenly where it must, but each GPU of a row needs one."""
    if facts.layer_count is None or row_length <= facts.layer_count:
        return None
    return f"pipeline_parallel_size is {row_length}, but the model has {facts.layer_count} layers to part"


def _shared(item: Budgeted) -> str:
    return f"{_name(item)} is {_IN_USE}"


def _is_slice(item: Budgeted) -> bool:
    return item.usable.gpu.mig_profile is not None


def _alone(item: Budgeted) -> str:
    return f"{_name(item)} is {_SLICE}"


def _name(item: Budgeted) -> str:
    return f"GPU {item.usable.position} ({item.usable.gpu.device_name})"


def _by_kind(gpus: Sequence[Budgeted], spread: bool) -> tuple[list[Budgeted], list[Budgeted]]:
    """Cards and integrated GPUs, each with the least free memory first, or to spread with the most."""
    sign = -1 if spread else 1
    ordered = sorted(gpus, key=lambda item: (sign * item.budget.free_bytes, item.usable.position))
    cards = [item for item in ordered if not is_integrated(item.usable.gpu)]
    return cards, [item for item in ordered if is_integrated(item.usable.gpu)]


def _largest(cards: Sequence[Budgeted]) -> list[GPUSet]:
    """The two largest cards, then the three largest, and so on: as few as will do."""
    by_free = sorted(cards, key=lambda item: (-item.budget.free_bytes, item.usable.position))
    return [_in_order(by_free[:count]) for count in range(2, len(by_free) + 1)]


def _in_order(items: Sequence[Budgeted]) -> GPUSet:
    return tuple(sorted(items, key=lambda item: item.usable.position))


def _position_of(gpus: Sequence[GPUInfo], name: int | str) -> int | None:
    if isinstance(name, int):
        return name if 0 <= name < len(gpus) else None
    wanted = name.lower()
    by_uuid = [index for index, gpu in enumerate(gpus) if gpu.uuid is not None and gpu.uuid.lower() == wanted]
    if by_uuid:
        return by_uuid[0]
    by_address = [
        index
        for index, gpu in enumerate(gpus)
        if gpu.pci_bus_id is not None and gpu.pci_bus_id.lower() == wanted
    ]
    # Slices of one card share its address, so it names none of them.
    return by_address[0] if len(by_address) == 1 else None
