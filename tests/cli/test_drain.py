"""``drain``: what is told while a node empties, and how it ends."""

import json
import re

import pytest

from tests.cli.conftest import Call
from tests.cli.fleet import GPU_1, SILENT, Fleet, ready
from xgen_ray.cli.exits import ExitCode
from xgen_ray.schema import DrainRequest

NO_ROOM = "no node can take it"


@pytest.fixture
def emptied(fleet: Fleet) -> Fleet:
    """Nothing is on the node any more."""
    fleet.node_reports = (GPU_1.model_copy(update={"models": (), "leases": ()}), SILENT)
    return fleet


def test_it_waits_until_nothing_is_there(call: Call, emptied: Fleet) -> None:
    emptied.leaving = [("tiny",), ("tiny",), ()]
    result = call("drain", GPU_1.node_id)
    assert result.exit_code == ExitCode.OK, result.stderr
    assert emptied.drains == [DrainRequest(node=GPU_1.node_id)]
    assert result.stderr.splitlines() == ["gpu-1: tiny still there"]
    assert result.stdout.startswith("gpu-1 is empty after ")
    assert "`xgen-ray drain gpu-1 --lift`" in result.stdout


def test_at_its_deadline_it_names_what_could_not_move(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small").model_copy(update={"shortfall": NO_ROOM})
    result = call("drain", "gpu-1", "--timeout", "1")
    assert result.exit_code == ExitCode.TIMED_OUT
    assert f"error: gpu-1 is not empty after 1 s: small ({NO_ROOM}); tiny (" in result.stderr
    assert "goes on there and moves as soon as it has one" in result.stderr
    assert result.stdout == ""
    told = json.loads(call("drain", "gpu-1", "--timeout", "1", "--json").stdout)
    assert (told["node"], told["drained_since"]) == ("gpu-1", 1.0)
    assert [one["model"] for one in told["left"]] == ["small", "tiny"]
    assert told["left"][0]["reason"] == NO_ROOM


def test_without_waiting_it_tells_what_moves(call: Call, fleet: Fleet) -> None:
    result = call("drain", "gpu-1", "--no-wait")
    assert result.stdout == "gpu-1 takes nothing new; moving away: small, tiny\n"
    report = json.loads(call("drain", "gpu-1", "--no-wait", "--json").stdout)
    assert report == {"node": "gpu-1", "drained_since": 1.0, "models": ["small", "tiny"]}


def test_lifted_it_takes_models_again(call: Call, fleet: Fleet) -> None:
    assert call("drain", "gpu-1", "--lift").stdout == "gpu-1 takes models again\n"
    assert fleet.drains == [DrainRequest(node="gpu-1", lift=True)]


def test_a_node_that_is_not_there_is_the_callers_fault(call: Call, fleet: Fleet) -> None:
    result = call("drain", "gpu-9")
    assert result.exit_code == ExitCode.USAGE
    assert "there is no node gpu-9; the nodes are: gpu-1" in result.stderr


def test_nodes_shows_what_is_drained(call: Call, fleet: Fleet) -> None:
    reason = "drained by an operator"
    closed = GPU_1.model_copy(update={"drained_since": 1.0, "schedulable": False, "reason": reason})
    fleet.node_reports, fleet.drained_away = (closed,), ("gpu-7",)
    text = call("nodes").stdout
    assert re.search("gpu-1 +drained ", text)
    assert f"gpu-1: {reason}\n" in text, "no advice to look for a fault"
    assert "gpu-7: drained, and not there now" in text
    assert "xgen-ray doctor" not in call("nodes", "gpu-1").stdout
