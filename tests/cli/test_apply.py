"""`apply` as far as it needs no cluster; the rest is in tests/e2e."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.stack import REPOSITORY
from xgen_ray.cli.exits import ExitCode

FLEET = REPOSITORY / "cluster_configs" / "mixed-fleet.yaml"
# Its last lines are the router's arguments.
ROUTER = """\
http_options: {host: 127.0.0.1}
applications:
  - name: xgen-control
    import_path: deployments.app:control
    route_prefix: /api
  - name: xgen-router
    import_path: deployments.app:router
    route_prefix: /
    args:
      replicas: 1
"""


def test_a_good_file_is_said_to_be_one(call: Call) -> None:
    result = call("apply", str(FLEET), "--check")
    assert result.exit_code == ExitCode.OK, result.output
    assert "no fault; it declares 3 models: qwen3-8b@vllm, qwen3-8b@gguf, embed" in result.stdout
    told = json.loads(call("apply", str(FLEET), "--check", "--json").stdout)
    assert told["models"] == ["qwen3-8b@vllm", "qwen3-8b@gguf", "embed"]
    assert told["applied"] is False


@pytest.mark.parametrize("check", [("--check",), (), ("--check", "--address", "127.0.0.1:6399")])
def test_a_bad_file_goes_nowhere_near_a_cluster(call: Call, tmp_path: Path, check: tuple[str, ...]) -> None:
    bad = tmp_path / "fleet.yaml"
    text = FLEET.read_text().replace("slots: 32", "slotz: 32")
    bad.write_text(text)
    line = text[: text.index("slotz")].count("\n") + 1
    result = call("apply", str(bad), *check)
    assert result.exit_code == ExitCode.USAGE
    assert f"fleet.yaml:{line}: applications[0].args.models[0].options.slotz" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        ("apply", "--check"),
        ("apply",),
        ("node", "--head", "--node-ip-address", "192.0.2.7", "--block", "--config"),
    ],
)
def test_traces_that_routers_cannot_send_are_told_before_anything_is_deployed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    traced = tmp_path / "fleet.yaml"
    traced.write_text(f"{ROUTER}      otlp_endpoint: http://127.0.0.1:4318\n")
    assert call("apply", str(traced), "--check").exit_code == ExitCode.OK
    monkeypatch.setattr("xgen_ray.api.tracing.find_spec", lambda name: None)
    result = call(*command, str(traced))
    assert result.exit_code == ExitCode.USAGE
    assert "fleet.yaml:11: applications[1].args.otlp_endpoint: traces need the extra" in result.stderr
    assert "pip install 'xgen-ray[tracing]', here and on the head" in result.stderr
    assert "Traceback" not in result.output


def test_a_config_without_our_applications_is_not_ours_to_apply(call: Call, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("applications: [{name: x, import_path: 'a:b', route_prefix: /}]")
    result = call("apply", str(other), "--check")
    assert result.exit_code == ExitCode.USAGE
    assert "deployments.app:control" in result.stderr


def test_without_a_cluster_it_says_so_at_once(call: Call, silent_port: int) -> None:
    result = call("apply", str(FLEET), "--address", f"127.0.0.1:{silent_port}")
    assert result.exit_code == ExitCode.UNREACHABLE
