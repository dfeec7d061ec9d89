"""What control says of the models that lie on its nodes."""

from pathlib import Path
from typing import cast

from xgen_ray.errors import NotReady
from xgen_ray.models import ModelFormat, Shelf, ShelvedModel
from xgen_ray.placement import DEFAULT_POLICY
from xgen_ray.serving.looks import FleetReader
from xgen_ray.serving.node_state import Versions
from xgen_ray.serving.nodes import Nodes, NodesSeen
from xgen_ray.serving.sources import SourceFinder

MODEL = ShelvedModel(Path("/models/a.gguf"), "a", ModelFormat.GGUF, 10)


class TwoNodes:
    """One has a model; the other's owner has only just been started."""

    def __init__(self) -> None:
        self.looked = False

    async def look(self, deadline_s: float) -> NodesSeen:
        self.looked = True
        return NodesSeen((), ())

    async def alive(self) -> dict[str, str]:
        return {"n1": "one", "n2": "two"}

    async def shelf(self, node_id: str) -> Shelf:
        assert self.looked, "owners that are missing are started first"
        if node_id == "n2":
            raise NotReady("the node's owner has not answered shelf in 15 s")
        return Shelf((MODEL,))


async def test_a_node_that_gives_no_answer_yet_is_told_and_keeps_nobody_waiting() -> None:
    sources = SourceFinder((), Path("/nowhere"), None, None)
    reader = FleetReader(cast("Nodes", TwoNodes()), sources, DEFAULT_POLICY, Versions("1", "2", "3"))
    shelves = await reader.shelves()
    assert shelves["one"] == Shelf((MODEL,))
    assert shelves["two"].models == ()
    assert "not looked at yet" in shelves["two"].left_out[0]
