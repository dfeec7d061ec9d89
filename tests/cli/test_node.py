"""`node` up to where Ray would be started: options, refusals and the dry run. The rest is in tests/e2e."""

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Call
from tests.stack import REPOSITORY
from xgen_ray.cli.exits import ExitCode
from xgen_ray.placement.tags import LABEL_PREFIX


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --head"),
        (("--head", "--address", "10.0.0.1"), "either --head"),
        (("--address", "10.0.0.1", "--dashboard"), "are for --head"),
        (("--head", "--config", "no-such-file.yaml"), "there is no file no-such-file.yaml"),
        (("--head", "--name", "my node"), "--name 'my node'"),
        (("--head", "--name", "x" * 64), "1 to 63"),
        (("--address", "127.0.0.1:6379", "--dry-run"), "this machine alone"),
        (("--address", "x:1", "--dry-run"), "no address of a head"),
        (("--head", "--node-ip-address", "0.0.0.0", "--dry-run"), "cannot be this node's address"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_looked_at(
    call: Call, arguments: tuple[str, ...], words: str
) -> None:
    result = call("node", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_an_address_that_is_not_there_yet_is_worth_another_try(call: Call) -> None:
    """At boot: systemd starts the node again after this code."""
    result = call("node", "--head", "--node-ip-address", "203.0.113.7", "--dry-run")
    assert result.exit_code == ExitCode.FAILED
    assert "cannot be this node's address" in result.stderr


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [(None, 0, "No such file"), ("alice: sk-1", 0o644, "chmod 600"), ("alice:", 0o600, "alice has no key")],
)
@pytest.mark.parametrize("application", ["control", "router"])
def test_a_head_without_its_file_of_keys_is_refused_before_ray_starts(
    call: Call, tmp_path: Path, application: str, text: str | None, mode: int, words: str
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    for path, content, permissions in ((good, "alice: sk-1", 0o600), (bad, text, mode)):
        if content is not None:
            path.write_text(content)
            path.chmod(permissions)
    config = tmp_path / "fleet.yaml"
    fleet = yaml.safe_load((REPOSITORY / "cluster_configs" / "static-fleet.yaml").read_text())
    for one in fleet["applications"]:
        one["args"]["api_keys_file"] = str(bad if one["name"] == f"xgen-{application}" else good)
    config.write_text(yaml.safe_dump(fleet))
    began = time.monotonic()
    result = call("node", "--head", "--config", str(config), "--block")
    assert result.exit_code == ExitCode.USAGE
    assert words in result.stderr
    assert time.monotonic() - began < 20


@pytest.mark.engine
def test_a_dry_run_shows_what_would_be_run(call: Call, tmp_path: Path) -> None:
    """It looks at the machine as a start would, which runs each engine once."""
    secret = "0123456789abcdef" * 2
    settings = {"XDG_CACHE_HOME": str(tmp_path), "RAY_AUTH_TOKEN": secret}
    arguments = ("node", "--head", "--name", "here", "--port", "6123", "--num-cpus", "3", "--dry-run")
    shown = call(*arguments, "--", "--min-worker-port", "11000", env=settings)
    assert shown.exit_code == ExitCode.OK, shown.output
    lines = shown.stdout.splitlines()
    assert "export RAY_AUTH_MODE=token" in lines
    assert " start --head --port 6123 " in lines[-1]
    assert lines[-1].endswith("--block --min-worker-port 11000")
    assert secret not in shown.output

    described = json.loads(call(*arguments, "--json", env=settings).stdout)
    assert described["name"] == described["labels"][LABEL_PREFIX + "name"] == "here"
    assert described["join"] is None  # on loopback
    assert described["command"][1:3] == ["start", "--head"]
    assert described["environment"]["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert described["labels"][LABEL_PREFIX + "backend-llama-server-cpu"] == "true"
    # Nothing was started or written.
    assert not list(tmp_path.glob("**/auth_token"))
