"""What needs no server: this machine's hardware, and a plan for it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from xgen_ray.cli.exits import ExitCode
from xgen_ray.hardware import snapshot_from_json
from xgen_ray.schema import PlanReport

MODEL = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct-q4_1.gguf"
NOWHERE = {"XGEN_RAY_URL": "http://127.0.0.1:9"}


def test_detect_shows_this_machine(call: Call) -> None:
    result = call("detect", "--json", env=NOWHERE)
    assert result.exit_code == ExitCode.OK
    snapshot = snapshot_from_json(result.stdout)
    assert snapshot.host.cpu_count >= 1
    assert {report.detector for report in snapshot.detection.reports} >= {"amdsmi", "pynvml", "cpu"}


def test_a_plan_for_a_file_that_is_not_there_says_so(call: Call) -> None:
    result = call("plan", "/no/such/model.gguf", "--local")
    assert result.exit_code == ExitCode.USAGE
    assert "error: /no/such/model.gguf" in result.stderr


@pytest.mark.engine
def test_without_a_server_a_plan_is_made_for_this_machine(call: Call, tmp_path: Path) -> None:
    env = {**NOWHERE, "XDG_CACHE_HOME": str(tmp_path)}
    result = call("plan", str(MODEL), "--backend", "llama-server-cpu", "--context", "512", "--json", env=env)
    assert result.exit_code == ExitCode.OK, result.output
    assert "this is for the machine as it is" in result.stderr
    report = PlanReport.model_validate(json.loads(result.stdout))
    assert report.backend == "llama-server-cpu"
    assert report.options["context"] == 512
    refused = call("plan", str(MODEL), "--local", "--context", "10000000", env=env)
    assert refused.exit_code == ExitCode.REFUSED
    assert "10000000" in refused.stdout


def test_a_plan_for_another_machine_is_not_made_here(call: Call) -> None:
    result = call("plan", str(MODEL), env={"XGEN_RAY_URL": "http://nowhere.invalid:8000"})
    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.stdout == ""
