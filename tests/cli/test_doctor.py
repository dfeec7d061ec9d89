"""``doctor`` on this machine: it has each engine compute."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from xgen_ray.cli.exits import ExitCode


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What engines were found able to do is kept here, so that they are tried once."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.engine
def test_the_table(call: Call, tmp_path: Path, cache: str) -> None:
    done = call("doctor", "--cache-dir", cache, "--state-dir", str(tmp_path))
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "LEVEL", "FOUND"]
    assert any(line.startswith("disk") and f"cache ({cache})" in line for line in lines)
    assert any(line.startswith("xgen-ray  ok") for line in lines)
    assert (done.exit_code == 1) == (" problem" in lines[-1])


@pytest.mark.engine
def test_json_and_a_head_that_is_not_there(
    call: Call, tmp_path: Path, url: str, cache: str, silent_port: int
) -> None:
    head = f"127.0.0.1:{silent_port}"
    done = call("doctor", "--json", "--address", head, "--cache-dir", cache, "--state-dir", str(tmp_path))
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert set(report) == {"host", "worst", "findings"}
    assert report["worst"] == "problem"
    assert all(finding["advice"] for finding in report["findings"] if finding["level"] == "problem")
    clock = [finding for finding in report["findings"] if finding["check"] == "clock"]
    assert any(f"{url} (give or take" in finding["found"] for finding in clock if finding["level"] == "ok")
    (ray,) = [finding for finding in report["findings"] if finding["check"] == "ray"]
    assert ray["level"] == "problem"
    assert f"the head at {head}: nothing listens at {head}" in ray["found"]


@pytest.mark.engine
def test_an_engine_that_is_named_is_the_one_that_is_tried_and_a_state_dir_that_cannot_be_is_told(
    call: Call, tmp_path: Path, cache: str
) -> None:
    state = tmp_path / "state"
    state.write_text("a file")
    done = call(
        "doctor", "--engine", "vllm-cuda=/no/such/python", "--cache-dir", cache, "--state-dir", str(state)
    )
    assert done.exit_code == 1
    assert "/no/such/python" in done.stdout
    assert f"state ({state}): {state} is no folder" in done.stdout
    assert "-> let this user write there" in done.stdout
    wrong = call("doctor", "--engine", "abacus=/bin/true", "--cache-dir", cache)
    assert wrong.exit_code == ExitCode.USAGE
    assert "BACKEND=COMMAND" in wrong.stderr


def test_an_address_that_is_none_is_refused_before_anything_is_looked_at(call: Call) -> None:
    done = call("doctor", "--address", "http://gpu-1")
    assert done.exit_code == ExitCode.USAGE
    assert "give HOST:PORT" in done.stderr
