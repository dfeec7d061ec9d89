"""What a simulated world is made of: machines with their owners' books, and Serve's applications on them."""

from dataclasses import dataclass, field

from tests.serving.builders import engines, snapshot
from xgen_ray.hardware.types import GPUInfo, GPUUsage, NodeUsage
from xgen_ray.placement import RAM, Claim, NodeType, NodeView, gpu_key
from xgen_ray.serving import leases
from xgen_ray.serving.leases import Book, Ground
from xgen_ray.serving.state import ServeState

NODE_TYPES = {
    "amd": NodeType(
        "amd",
        {"CPU": 8, "amd_rdna": 1, "gfx1151": 1},
        {"xgen-ray/ram": "64g", "xgen-ray/gpu-memory": "48g", "xgen-ray/gpu-type": "amd_rdna"},
        max_workers=2,
    ),
    "cpu": NodeType("cpu", {"CPU": 8, "cpu_node": 1}, {"xgen-ray/ram": "64g"}, max_workers=1),
}


@dataclass
class Node:
    """A machine with its owner's book. ``book`` survives the owner, as the journal does."""

    node_id: str
    ram_bytes: int
    gpus: tuple[GPUInfo, ...]
    with_files: bool
    name: str
    kind: str = ""
    book: Book = field(default_factory=Book)
    # Engines that really run here, by the lease they have.
    engines: dict[str, tuple[Claim, ...]] = field(default_factory=dict)
    # What engines have turned out to take, by lease.
    measured: dict[str, tuple[Claim, ...]] = field(default_factory=dict)

    def usage(self) -> NodeUsage:
        used: dict[str, int] = {}
        for lease_id in self.engines:
            lease = self.book.leases.get(lease_id)
            # What is still loading is in no figure yet.
            if lease is not None and lease.use is not None:
                for claim in lease.use.claims:
                    used[claim.device] = used.get(claim.device, 0) + claim.size_bytes
        live = tuple(
            GPUUsage(
                gpu.device_index,
                gpu.uuid,
                gpu.pci_bus_id,
                used.get(gpu_key(gpu), 0),
                (gpu.memory_total_bytes or 0) - used.get(gpu_key(gpu), 0),
            )
            for gpu in self.gpus
        )
        return NodeUsage(live, self.ram_bytes - used.get(RAM, 0), None)

    def ground(self) -> Ground:
        return Ground(snapshot(self.ram_bytes, self.gpus), self.usage())

    def view(self) -> NodeView:
        ground = self.ground()
        return NodeView(
            node_id=self.node_id,
            name=self.name,
            snapshot=ground.snapshot,
            statuses=engines(self.gpus),
            usage=ground.usage,
            outstanding=leases.outstanding(self.book, ground.unseen()),
            taken=leases.taken(self.book),
            has_files=self.with_files,
            can_fetch=True,
            tagged=True,
            node_type=self.kind,
        )

    def check(self) -> None:
        """No memory is leased twice, and no engine runs without a lease."""
        limits = {gpu_key(gpu): gpu.memory_total_bytes or 0 for gpu in self.gpus} | {RAM: self.ram_bytes}
        promised: dict[str, int] = {}
        for lease in self.book.leases.values():
            measured = self.measured.get(lease.lease_id, ())
            real = {claim.device: claim.size_bytes for claim in measured if claim.device != RAM}
            for claim in lease.claims:
                size = real.get(claim.device, claim.size_bytes)
                promised[claim.device] = promised.get(claim.device, 0) + size
        for device, size in promised.items():
            assert size <= limits[device], (
                f"{self.node_id}: {size} of {limits[device]} on {device} are leased"
            )
        for lease_id in self.engines:
            assert lease_id in self.book.leases, (
                f"{self.node_id}: an engine runs without its lease {lease_id}"
            )


@dataclass
class App:
    """A Serve application: keeps its replicas alive until it is told to stop."""

    model: str
    node_id: str
    state: ServeState = ServeState.STARTING
    replicas: dict[str, str] = field(default_factory=dict)  # lease by replica
    starts: int = 0
