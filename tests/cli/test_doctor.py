"""``doctor`` on this machine."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from xgen_ray.cli.exits import ExitCode
from xgen_ray.process import free_port


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What engines were found able to do is kept here, so that they are tried once."""
    return str(tmp_path_factory.mktemp("cache"))


def test_the_table(call: Call, tmp_path: Path, cache: str) -> None:
    done = call("doctor", "--cache-dir", cache, "--state-dir", str(tmp_path))
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["CHECK", "LEVEL", "FOUND"]
    assert any(line.startswith("disk") and f"cache ({cache})" in line for line in lines)
    assert any(line.startswith("xgen-ray  ok") for line in lines)
    assert (done.exit_code == 1) == (" problem" in lines[-1])


def test_json(call: Call, tmp_path: Path, url: str, cache: str) -> None:
    done = call("doctor", "--json", "--cache-dir", cache, "--state-dir", str(tmp_path))
    report = json.loads(done.stdout)
    assert set(report) == {"host", "worst", "findings"}
    levels = {finding["level"] for finding in report["findings"]}
    assert report["worst"] in levels
    assert all(finding["advice"] for finding in report["findings"] if finding["level"] == "problem")
    assert done.exit_code == int("problem" in levels)
    clock = [finding for finding in report["findings"] if finding["check"] == "clock"]
    assert clock[0]["level"] == "ok"
    assert f"{url} (give or take" in clock[0]["found"]


def test_a_head_that_is_not_there_is_a_problem(call: Call, cache: str) -> None:
    head = f"127.0.0.1:{free_port()}"
    done = call("doctor", "--address", head, "--json", "--cache-dir", cache)
    assert done.exit_code == 1
    (ray,) = [finding for finding in json.loads(done.stdout)["findings"] if finding["check"] == "ray"]
    assert ray["level"] == "problem"
    assert f"the head at {head}: nothing listens at {head}" in ray["found"]


def test_an_engine_that_is_named_is_the_one_that_is_tried(call: Call, cache: str) -> None:
    done = call("doctor", "--engine", "vllm-cuda=/no/such/python", "--cache-dir", cache)
    assert "/no/such/python" in done.stdout
    wrong = call("doctor", "--engine", "abacus=/bin/true", "--cache-dir", cache)
    assert wrong.exit_code == ExitCode.USAGE
    assert "BACKEND=COMMAND" in wrong.stderr


def test_an_address_that_is_none_is_refused_before_anything_is_looked_at(call: Call) -> None:
    done = call("doctor", "--address", "http://gpu-1")
    assert done.exit_code == ExitCode.USAGE
    assert "give HOST:PORT" in done.stderr


def test_a_state_dir_that_cannot_be_is_a_problem(call: Call, tmp_path: Path, cache: str) -> None:
    (tmp_path / "state").write_text("a file")
    done = call("doctor", "--state-dir", str(tmp_path / "state"), "--cache-dir", cache)
    assert done.exit_code == 1
    assert f"state ({tmp_path / 'state'}): {tmp_path / 'state'} is no folder" in done.stdout
    assert "-> let this user write there" in done.stdout
