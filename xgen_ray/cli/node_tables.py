"""Nodes as tables: the whole fleet in a few columns, or all of one node."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from xgen_ray.cli import output
from xgen_ray.placement import BACKENDS, RAM
from xgen_ray.placement.sizes import gib
from xgen_ray.schema import GPUReport, NodeReport

_STATE_STYLES = {"ready": "green", "untagged": "yellow", "drained": "yellow", "unusable": "bold red"}
_SILENT_ADVICE = "If that lasts: run `xgen-ray doctor` on it, then join it again with `xgen-ray node`."
_SHORT_ID = 8


def fleet_tables(nodes: Sequence[NodeReport], drained_away: Sequence[str] = ()) -> RenderableType:
    """Return the nodes, then their devices with live figures, then what is wrong with which node.
    ``drained_away`` are drained and not there.
    """
    if not nodes:
        return Text("No nodes. Join one with `xgen-ray node --address HOST:PORT`.")
    named = _names(nodes)
    parts: list[RenderableType] = [_overview(named)]
    if any(node.memory_total_bytes for node in nodes):
        parts += [Text(""), _devices(named)]
    told = [_trouble(name, node) for name, node in named if node.reason]
    told += [Text(f"{output.plain(name)}: drained, and not there now") for name in drained_away]
    if told:
        parts += [Text(""), *told]
    return Group(*parts)


def node_tables(nodes: Sequence[NodeReport]) -> RenderableType:
    """Return all that is known of each of the nodes."""
    parts: list[RenderableType] = []
    for node in nodes:
        parts += [*_detail(node), Text("")]
    return Group(*parts[:-1])


def _names(nodes: Sequence[NodeReport]) -> list[tuple[str, NodeReport]]:
    """Each node with a name of its own: where two share one, with the start of its id."""
    count = Counter(node.node for node in nodes)
    return [
        (node.node if count[node.node] == 1 else f"{node.node} ({node.node_id[:_SHORT_ID]})", node)
        for node in nodes
    ]


def _overview(named: Sequence[tuple[str, NodeReport]]) -> Table:
    result = output.table(
        *("NODE", "STATE", "KIND", "GPUS", "LEASES", "MODELS", "BACKENDS"), folded=("NODE", "KIND", "MODELS")
    )
    for name, node in named:
        seen = node.memory_total_bytes > 0
        result.add_row(
            output.cell(name, "bold"),
            _state(node),
            output.cell(_kinds(node) if seen else None),
            output.cell(len(node.gpus) if seen else None),
            output.cell(len(node.leases) if seen else None),
            output.cell(", ".join(node.models)),
            output.cell(_engines(node)),
        )
    return result


def _devices(named: Sequence[tuple[str, NodeReport]]) -> Table:
    """One row for each memory that a model can lie in: the machine's, then its GPUs'."""
    result = output.table("NODE", "DEVICE", "USED", "FREE", "LEASED", "BUSY", "NAME", folded=("NODE",))
    for column in result.columns[2:6]:
        column.justify = "right"
    for name, node in named:
        if not node.memory_total_bytes:
            continue
        result.add_row(output.cell(name, "bold"), output.cell("ram"), *_ram(node), output.cell(node.cpu))
        for gpu in node.gpus:
            result.add_row(
                output.cell(name, "bold"),
                output.cell(f"gpu {gpu.id}"),
                output.cell(_size(gpu.memory_used_bytes)),
                output.cell(_size(gpu.memory_free_bytes)),
                output.cell(gib(gpu.leased_bytes)),
                output.cell(_percent(gpu.utilization_percent)),
                output.cell(gpu.name),
            )
    return result


def _ram(node: NodeReport) -> tuple[Text, Text, Text, Text]:
    leased = sum(lease.devices.get(RAM, 0) for lease in node.leases)
    return (
        output.cell(gib(node.memory_total_bytes - node.memory_available_bytes)),
        output.cell(gib(node.memory_available_bytes)),
        output.cell(gib(leased)),
        output.cell(_percent(node.cpu_percent)),
    )


def _detail(node: NodeReport) -> list[RenderableType]:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    rows: list[tuple[str, object]] = [("node", node.node), ("id", node.node_id), ("state", _state(node))]
    if node.reason:
        rows += [("reason", node.reason), *([("do", _SILENT_ADVICE)] if _is_mute(node) else [])]
    if not node.memory_total_bytes:
        # Nobody has looked into it: every further figure would be made up.
        rows += _label_rows(node)
        _fill(facts, rows)
        return [facts]
    threads = sum(lease.threads for lease in node.leases)
    used, free, leased, busy = (cell.plain for cell in _ram(node))
    rows += [
        ("cpu", f"{node.cpu or 'unknown'}: {node.cpu_count} threads, {threads} leased, {busy} busy"),
        ("ram", f"{gib(node.memory_total_bytes)}: {used} used, {free} free, {leased} leased"),
        ("kind", _kinds(node)),
        ("models", ", ".join(node.models)),
        ("found by", node.detection_method),
        ("versions", ", ".join(f"{name} {version}" for name, version in node.versions.items())),
        *_label_rows(node),
    ]
    _fill(facts, rows)
    parts: list[RenderableType] = [facts]
    if node.gpus:
        parts += [Text(""), _gpus(node.gpus)]
    if node.leases:
        parts += [Text(""), _leases(node)]
    parts += [Text(""), _backends(node)]
    if node.detectors:
        parts += [Text(""), _detectors(node)]
    return parts


def _fill(grid: Table, rows: Iterable[tuple[str, object]]) -> None:
    for title, value in rows:
        grid.add_row(title, value if isinstance(value, Text) else output.cell(value))


def _label_rows(node: NodeReport) -> list[tuple[str, object]]:
    return [("labels", "\n".join(f"{key}={value}" for key, value in sorted(node.labels.items())))]


def _gpus(gpus: Sequence[GPUReport]) -> Table:
    result = output.table("GPU", "KIND", "TOTAL", "USED", "FREE", "LEASED", "BUSY", "TEMP", "POWER", "NAME")
    for column in result.columns[2:9]:
        column.justify = "right"
    for gpu in gpus:
        heat, power = gpu.temperature_celsius, gpu.power_watts
        total = None if gpu.memory_gb is None else f"{gpu.memory_gb:.1f} GiB"
        result.add_row(
            output.cell(gpu.id),
            output.cell(_kind(gpu)),
            output.cell(total),
            output.cell(_size(gpu.memory_used_bytes)),
            output.cell(_size(gpu.memory_free_bytes)),
            output.cell(gib(gpu.leased_bytes)),
            output.cell(_percent(gpu.utilization_percent)),
            output.cell(None if heat is None else f"{heat:.0f} C"),
            output.cell(None if power is None else f"{power:.0f} W"),
            output.cell(_described(gpu)),
        )
    return result


def _leases(node: NodeReport) -> Table:
    """Who has been promised what, by model."""
    keys = {key: f"gpu {gpu.id}" for gpu in node.gpus for key in (gpu.uuid, gpu.pci_bus_id) if key}
    result = output.table("MODEL", "BACKEND", "STATE", "THREADS", "LEASED", folded=("MODEL",))
    for lease in sorted(node.leases, key=lambda lease: (lease.model, lease.lease)):
        sizes: dict[str, int] = defaultdict(int)
        for device, size in lease.devices.items():
            sizes[keys.get(device, device)] += size
        result.add_row(
            output.cell(lease.model, "bold"),
            output.cell(lease.backend),
            output.cell(lease.state),
            output.cell(lease.threads),
            output.cell(", ".join(f"{device} {gib(size)}" for device, size in sizes.items())),
        )
    return result


def _backends(node: NodeReport) -> Table:
    result = output.table("BACKEND", "STARTS", "VERSION", "WHY", folded=("VERSION",))
    for backend in node.backends:
        why = "; ".join((backend.reason, *backend.devices))
        result.add_row(
            output.cell(backend.backend.value, "bold" if backend.available else ""),
            output.cell("yes", "green") if backend.available else output.cell("no"),
            output.cell(backend.version),
            output.cell(why),
        )
    return result


def _detectors(node: NodeReport) -> Table:
    result = output.table("DETECTOR", "FOUND", "SAID")
    for line in node.detectors:
        result.add_row(output.cell(line.detector), output.cell(line.found), output.cell(line.reason))
    return result


def _state(node: NodeReport) -> Text:
    word = "ready" if node.tagged else "untagged"
    if node.drained_since is not None:
        word = "drained"
    elif not node.schedulable:
        word = "unusable"
    return Text(word, style=_STATE_STYLES[word])


def _is_mute(node: NodeReport) -> bool:
    """Nobody wants it out of service, and still it is."""
    return not node.schedulable and node.drained_since is None


def _trouble(name: str, node: NodeReport) -> Text:
    advice = f". {_SILENT_ADVICE}" if _is_mute(node) else ""
    style = _STATE_STYLES[_state(node).plain]
    return Text.assemble((output.plain(name), style), ": ", output.plain(node.reason + advice))


def _kinds(node: NodeReport) -> str:
    """What Ray's tags say in short: each kind of GPU with its number."""
    kinds = Counter(_kind(gpu) for gpu in node.gpus)
    return ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in kinds.items()) or "cpu"


def _kind(gpu: GPUReport) -> str:
    if gpu.gfx_version is not None:
        return gpu.gfx_version
    return f"cc {gpu.compute_capability}" if gpu.compute_capability is not None else gpu.gpu_type


def _described(gpu: GPUReport) -> str:
    """The name, and what tells it from its like."""
    address = gpu.uuid or gpu.pci_bus_id
    marks = ("integrated" if gpu.integrated else None, "unified" if gpu.unified_memory else None, address)
    return ", ".join((gpu.name, *(mark for mark in marks if mark)))


def _engines(node: NodeReport) -> str:
    """The backends that can start, by engine: ``llama-server: vulkan cpu; llama-cpp-python``."""
    engines: dict[str, list[str]] = {}
    for backend in node.available_backends:
        row = BACKENDS[backend]
        devices = engines.setdefault(row.engine.value, [])
        if row.engine.value != backend.value:
            devices.append(row.device_api.value)
    return "; ".join(
        f"{engine}: {' '.join(devices)}" if devices else engine for engine, devices in engines.items()
    )


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else gib(size_bytes)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}%"
