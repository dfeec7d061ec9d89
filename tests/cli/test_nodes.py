"""``nodes``: the fleet in tables, one node in full, and what is wrong with which."""

import json
import re
import signal

import pytest

from tests.cli.conftest import Call, program_command
from tests.cli.fleet import GPU_1, SILENT, UNTAGGED, Fleet
from tests.cli.terminal import terminal
from xgen_ray.cli.exits import ExitCode
from xgen_ray.placement.types import Backend
from xgen_ray.schema import NodesReport

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def rows_of(text: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in text.splitlines()]


def test_nodes_are_listed_with_live_figures(call: Call) -> None:
    result = call("nodes")
    assert result.exit_code == ExitCode.OK
    rows = rows_of(result.stdout)
    for row in (
        ["NODE", "STATE", "KIND", "GPUS", "LEASES", "MODELS", "BACKENDS"],
        [
            *("gpu-1", "ready", "cc 8.9, gfx1100", "2", "2", "small, tiny"),
            "llama-server: cuda vulkan cpu; llama-cpp-python",
        ],
        ["mute", "unusable", "-", "-", "-", "-", "-"],
        ["plain", "untagged", "cpu", "0", "0", "-", "llama-server: cpu"],
        ["gpu-1", "ram", "14.0 GiB", "50.0 GiB", "3.0 GiB", "12%", "AMD EPYC 7443P"],
        ["gpu-1", "gpu 0", "6.0 GiB", "16.5 GiB", "7.0 GiB", "35%", "NVIDIA L4"],
        # Nobody could measure it, which is not the same as nothing.
        ["gpu-1", "gpu 1", "-", "-", "0 MiB", "-", "Radeon RX 7900 XTX"],
    ):
        assert row in rows
    # Of a node that does not answer there are no figures to show.
    assert not [row for row in rows if row[:2] == ["mute", "ram"]]


def test_a_node_that_is_not_as_it_should_be_comes_with_what_to_do(call: Call) -> None:
    text = call("nodes").stdout
    assert f"mute: {SILENT.reason}. If that lasts: run `xgen-ray doctor` on it" in text
    assert f"plain: {UNTAGGED.reason}" in text
    assert "gpu-1:" not in text
    alone = call("nodes", "mute").stdout
    assert SILENT.reason in alone
    assert "xgen-ray doctor" in alone
    assert "0 MiB" not in alone


def test_one_node_is_told_in_full(call: Call) -> None:
    rows = rows_of(call("nodes", "gpu-1").stdout)
    for row in (
        ["id", GPU_1.node_id],
        ["cpu", "AMD EPYC 7443P: 16 threads, 3 leased, 12% busy"],
        ["ram", "64.0 GiB: 14.0 GiB used, 50.0 GiB free, 3.0 GiB leased"],
        ["versions", "xgen-ray 0.1.0, ray 2.56.1, python 3.11.9"],
        ["xgen-ray/sm_89=true"],
        [
            *("0", "cc 8.9", "22.5 GiB", "6.0 GiB", "16.5 GiB", "7.0 GiB", "35%", "61 C", "70 W"),
            "NVIDIA L4, GPU-0a1b",
        ],
        ["small", "llama-server-cuda", "settled", "0", "gpu 0 7.0 GiB, ram 1.0 GiB"],
        ["tiny", "-", "reserved", "3", "ram 2.0 GiB"],
        ["llama-server-cuda", "yes", "9660", "it lists 1 device; CUDA0: NVIDIA L4"],
        ["vllm-cuda", "no", "-", "no vllm on PATH"],
        ["amdsmi", "0", "no libamd_smi.so"],
    ):
        assert row in rows
    assert call("nodes", GPU_1.node_id).stdout == call("nodes", "gpu-1").stdout


def test_a_node_that_is_not_there_is_the_callers_fault(call: Call, fleet: Fleet) -> None:
    result = call("nodes", "gpu-9")
    assert result.exit_code == ExitCode.USAGE
    assert "error: No node is named 'gpu-9'. Nodes: gpu-1, mute, plain." in result.stderr
    fleet.node_reports = ()
    assert "xgen-ray node --address" in call("nodes").stdout
    assert "Nodes: none." in call("nodes", "gpu-9").stderr


def test_two_machines_of_one_name_are_told_apart(call: Call, fleet: Fleet) -> None:
    twin = GPU_1.model_copy(update={"node_id": "ee55" * 14})
    fleet.node_reports = (GPU_1, twin)
    named = [row[0] for row in rows_of(call("nodes").stdout)]
    assert {"gpu-1 (aa11aa11)", "gpu-1 (ee55ee55)"} <= set(named)
    both = call("nodes", "gpu-1").stdout
    assert GPU_1.node_id in both
    assert twin.node_id in both
    assert GPU_1.node_id not in call("nodes", twin.node_id).stdout


def test_nodes_as_json_is_the_servers_report(call: Call, fleet: Fleet) -> None:
    report = NodesReport.model_validate_json(call("nodes", "--json").stdout)
    assert report.nodes == fleet.node_reports
    one = json.loads(call("nodes", "mute", "--json").stdout)
    assert [node["node"] for node in one["nodes"]] == ["mute"]


def test_what_a_node_says_cannot_steer_the_terminal(call: Call, fleet: Fleet) -> None:
    rude = SILENT.model_copy(update={"node": "\x1b[2J[bold]x", "reason": "\x1b]0;title\x07 gone"})
    fleet.node_reports = (rude,)
    text = call("nodes").stdout
    assert "\x1b" not in text
    assert "[bold]x" in text


@pytest.mark.parametrize("width", [80, 100])
def test_a_fleet_on_a_terminal_fits_and_follows(
    fleet: Fleet, child_environment: dict[str, str], width: int
) -> None:
    everything = GPU_1.model_copy(update={"available_backends": tuple(Backend)})
    fleet.node_reports = (everything, SILENT)
    command = program_command("nodes", "-w", "--interval", "0.1")
    with terminal(command, child_environment, columns=width, lines=60) as shown:
        table = shown.wait_for("xgen-ray node`")
        fleet.node_reports = (UNTAGGED,)
        table += shown.wait_for("untagged")
        shown.process.send_signal(signal.SIGINT)
        assert shown.leave() == ExitCode.INTERRUPTED
    lines = ANSI.sub("", table).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    for word in ("16.5 GiB", "7.0 GiB", "35%", "NVIDIA L4", "unusable"):
        assert any(word in line for line in lines)
    assert "…" not in table
