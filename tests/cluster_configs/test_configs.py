"""Every committed configuration, read by the program that it is for, short of starting it."""

import configparser
import copy
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema
from typer.core import TyperGroup

from tests.docker import dockerfiles
from xgen_ray import __version__
from xgen_ray.cli.app import app
from xgen_ray.hardware.types import GPUType
from xgen_ray.placement.tags import CPU_NODE, LABEL_PREFIX
from xgen_ray.placement.types import Backend
from xgen_ray.serve_config import read_serve_config
from xgen_ray.settings import CONTROL_APP, ROUTER_APP, ControlSettings, RouterSettings, Settings

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
SERVE = ["one-machine.yaml", "static-fleet.yaml", "mixed-fleet.yaml"]
UNITS = ["xgen-ray-head.service", "xgen-ray-node.service"]
ON_PREMISES = "ray-up-on-premises.yaml"
CLOUD = "ray-up-aws.yaml"
RAY_UP = [ON_PREMISES, CLOUD]
KUBERAY = ["kuberay/fleet.yaml", "kuberay/monitoring.yaml"]  # see test_kuberay.py
IMAGE_HOME = "/var/lib/xgen-ray"
INSTALLED = "/opt/xgen-ray/bin/xgen-ray"
ARGUMENTS: dict[str, type[Settings]] = {CONTROL_APP: ControlSettings, ROUTER_APP: RouterSettings}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return content


def node_options(words: list[str]) -> dict[str, Any]:
    """What `xgen-ray node` makes of a command line, without running it."""
    assert Path(words[0]).name == "xgen-ray"
    program = typer.main.get_command(app)
    assert isinstance(program, TyperGroup)
    command = program.commands[words[1]]
    options: dict[str, Any] = command.make_context("node", words[2:]).params
    return options


def test_nothing_here_is_left_out_of_these_tests() -> None:
    held = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*") if path.is_file()}
    assert {*SERVE, *RAY_UP, *KUBERAY, *(f"systemd/{unit}" for unit in UNITS)} <= held


@pytest.mark.parametrize("name", SERVE)
def test_ray_serve_takes_the_config_and_we_take_the_arguments(name: str) -> None:
    config = ServeDeploySchema.model_validate(read(name))
    assert {application.name for application in config.applications} == set(ARGUMENTS)
    for application in config.applications:
        ARGUMENTS[application.name].model_validate(application.args)


@pytest.mark.parametrize("name", SERVE)
def test_our_own_check_takes_it_too(name: str) -> None:
    assert read_serve_config(CONFIGS / name, ServeDeploySchema).control is not None


@pytest.mark.parametrize("name", ["static-fleet.yaml", "mixed-fleet.yaml"])
def test_the_rows_of_profiles_that_a_comment_shows_are_taken(name: str) -> None:
    (shown,) = re.findall(r"^ +# (profiles:\n(?: +#   - .*\n)+)", (CONFIGS / name).read_text(), re.MULTILINE)
    rows = yaml.safe_load(re.sub(r"^ +#", "", shown, flags=re.MULTILINE))
    assert ControlSettings.model_validate(rows).profiles


@pytest.mark.parametrize("name", SERVE)
def test_what_others_can_reach_asks_for_keys(name: str) -> None:
    content = read(name)
    exposed = content["http_options"]["host"] != "127.0.0.1"
    assert all(("api_keys_file" in application["args"]) == exposed for application in content["applications"])


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_the_cluster(name: str) -> None:
    """As `ray up` reads it: filled with defaults, then checked against Ray's own schema."""
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(no_such_field=1),
        lambda config: config.pop("provider"),
        lambda config: config.update(max_workers="many"),
        lambda config: config["available_node_types"]["amd"].pop("resources"),
    ],
)
def test_rays_schema_would_notice(spoil: Callable[[dict[str, Any]], Any]) -> None:
    config = copy.deepcopy(prepare_config(read(CLOUD)))
    spoil(config)
    with pytest.raises(Exception, match=r"no_such_field|provider|many|resources"):
        validate_config(config)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_starts_its_nodes_with_options_that_exist(name: str) -> None:
    config = read(name)
    (head,) = [line for line in config["head_start_ray_commands"] if "xgen-ray" in line]
    head = head.removeprefix("RAY_enable_autoscaler_v2=0 ")
    (worker,) = [line for line in config["worker_start_ray_commands"] if line.startswith("xgen-ray")]
    started = node_options(shlex.split(re.sub(r"\$\(.*?\)", "10.0.0.1", head)))
    assert started["head"]
    # `ray up` waits for the command to end.
    assert not started["block"]
    assert started["ray_arguments"] == ["--autoscaling-config=~/ray_bootstrap_config.yaml"]
    assert node_options(shlex.split(worker))["address"] == "$RAY_HEAD_IP:6379"


def test_a_type_of_node_a_vendor_in_words_that_nodes_use() -> None:
    """The autoscaler starts a type for what it promises: it must be what such a node then has."""
    types = read(CLOUD)["available_node_types"]
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert set(workers) == {"nvidia", "amd", "cpu"}
    for name, kind in workers.items():
        validate_node_label_syntax(kind["labels"])
        vendor = GPUType(kind["labels"][f"{LABEL_PREFIX}gpu-type"])
        counted = CPU_NODE if vendor is GPUType.CPU else str(vendor)
        assert set(kind["resources"]) == {"CPU", counted}
        backends = {key.partition("/backend-")[2] for key in kind["labels"] if "/backend-" in key}
        assert backends
        assert backends <= set(Backend)
        if name != "cpu":
            assert kind["docker"]["worker_image"].endswith(f":{__version__}-{name}")
    assert read(CLOUD)["docker"]["image"].endswith(f":{__version__}-cpu")


def test_ray_up_mounts_files_that_the_containers_user_reads() -> None:
    """Ray mounts what it has copied to a machine as its SSH user, and Docker makes folders that are not
    there as root: so the container has that user, and its folders are there before it.
    """
    config = read(CLOUD)
    options = config["docker"]["run_options"]
    assert "--user=$(id -u):$(id -g)" in options
    volumes = [
        option.removeprefix("--volume=$HOME/").split(":") for option in options if "--volume" in option
    ]
    folders = {inside: outside for outside, inside in volumes}
    assert set(folders) == {IMAGE_HOME, "/var/cache/xgen-ray", "/etc/xgen-ray"}
    (mkdir,) = config["initialization_commands"]
    made = {word.removeprefix("~/") for word in mkdir.split()}
    assert set(folders.values()) <= made | {str(Path(path).parent) for path in made}
    started = docker_start_cmds(  # type: ignore[no-untyped-call]
        "ubuntu", "IMAGE", config["file_mounts"], "NAME", options, "xgen-ray", IMAGE_HOME, "docker"
    )
    for file in config["file_mounts"]:
        inside = file.replace("~", IMAGE_HOME)
        assert f":{inside} " in started
        assert str(Path(file.replace("~", folders[IMAGE_HOME])).parent) in made


def test_an_image_has_what_ray_up_calls_in_it() -> None:
    (install,) = dockerfiles.read("Dockerfile.node").stages["python"].all("RUN")
    assert {"rsync", "openssh-client"} <= set(install.split())


def service_of(unit: str) -> dict[str, str]:
    """The unit's [Service] section."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read_string((CONFIGS / "systemd" / unit).read_text().replace("\\\n", " "))
    return dict(parser["Service"])


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_starts_a_node_in_the_foreground_with_options_that_exist(unit: str) -> None:
    options = node_options(shlex.split(service_of(unit)["ExecStart"]))
    assert options["block"]
    assert options["token_file"] == Path("/etc/xgen-ray/token")
    assert options["head"] == (unit == "xgen-ray-head.service")


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_ends_everything_and_starts_again(unit: str) -> None:
    service = service_of(unit)
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2 4"
    assert service["OOMPolicy"] == "continue"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit(unit: str, tmp_path: Path) -> None:
    """systemd's own check, which also looks for the program: the one of this Python stands in for it."""
    text = (CONFIGS / "systemd" / unit).read_text()
    program = Path(sys.executable).with_name("xgen-ray")
    (tmp_path / unit).write_text(text.replace(INSTALLED, str(program)))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert unit not in done.stderr

    (tmp_path / unit).write_text(text.replace(INSTALLED, "/no/such/program"))
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0
