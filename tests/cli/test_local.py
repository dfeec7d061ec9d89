"""What needs no server: this machine's hardware, and a plan for it."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.conftest import Call, program_command
from tests.fakes.hub import Repo, StandInHub
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


@pytest.mark.engine
def test_a_model_that_was_never_fetched_is_planned_from_its_header(
    child_environment: dict[str, str], tmp_path: Path
) -> None:
    def planned(model: str, *options: str) -> subprocess.CompletedProcess[str]:
        # The hub's address is read when the program starts, so it is one of its own.
        env = {**child_environment, "HF_ENDPOINT": hub.endpoint, "XDG_CACHE_HOME": str(tmp_path)}
        command = program_command("plan", model, "--local", *options)
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    with StandInHub().running() as hub:
        hub.repos["org/name"] = Repo({"small.gguf": MODEL.read_bytes(), "README.md": b"# A model"})
        done = planned("hf:org/name", "--backend", "llama-server-cpu", "--context", "512", "--json")
        missing = planned("hf:org/other")
        fetched = hub.served_bytes["small.gguf"]
    assert done.returncode == ExitCode.OK, done.stderr
    report = PlanReport.model_validate_json(done.stdout)
    weights = next(item for item in report.footprint if item.name == "weights")
    assert weights.size_bytes > 80 * 2**20
    assert 0 < fetched < weights.size_bytes / 2
    assert not list(tmp_path.rglob("small.gguf"))
    assert missing.returncode == ExitCode.USAGE
    assert "org/other" in missing.stderr


def test_a_server_that_is_there_and_does_not_answer_is_not_taken_for_none(call: Call) -> None:
    with broken_server() as url:
        result = call("plan", str(MODEL), env={"XGEN_RAY_URL": url})
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "broke" in result.stderr
    assert result.stdout == ""


@contextmanager
def broken_server() -> Iterator[str]:
    """The address of a server that takes one connection and closes it without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def test_a_plan_for_another_machine_is_not_made_here(call: Call) -> None:
    result = call("plan", str(MODEL), env={"XGEN_RAY_URL": "http://nowhere.invalid:8000"})
    assert result.exit_code == ExitCode.UNREACHABLE
    assert result.stdout == ""
