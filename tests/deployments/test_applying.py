"""What is put back when Serve does not take a config, what is said of it, and what it cannot change."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.config import HTTPOptions
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from deployments.applying import of_configs, read_config, require_door, why_failed
from tests.stack import REPOSITORY
from xgen_ray.errors import ConfigError

ONE_MACHINE = REPOSITORY / "cluster_configs" / "one-machine.yaml"

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
  File "control.py", line 1, in __init__
    open("x")
NotADirectoryError: Not a directory: 'x'
"""


def test_what_configs_have_deployed_is_put_back_whatever_the_next_one_names() -> None:
    ours = {"name": "ours", "import_path": "a:b", "route_prefix": "/", "args": {"models": [{"name": "m"}]}}
    dropped = {"name": "dropped", "import_path": "c:d", "route_prefix": "/d"}
    details: dict[str, dict[str, Any]] = {
        "ours": {"deployed_app_config": ours},
        "dropped": {"deployed_app_config": dropped},
        "an engine of control's": {"deployed_app_config": None},
    }
    former = of_configs(details)
    assert [one.name for one in former] == ["ours", "dropped"]
    assert former[0].args == ours["args"]
    assert former[1].route_prefix == "/d"


def deployment(status: DeploymentStatus, message: str) -> DeploymentStatusOverview:
    return DeploymentStatusOverview(status, DeploymentStatusTrigger.CONFIG_UPDATE_STARTED, {}, message)


@pytest.mark.parametrize(
    ("message", "deployments", "told"),
    [
        (
            "Failed to update the deployments ['Control'].",
            {
                "Fine": deployment(DeploymentStatus.HEALTHY, "all is well"),
                "Control": deployment(DeploymentStatus.DEPLOY_FAILED, TRACEBACK),
            },
            "NotADirectoryError: Not a directory: 'x'",
        ),
        (TRACEBACK, {}, "NotADirectoryError: Not a directory: 'x'"),
        (
            "It could not be built.",
            {"Control": deployment(DeploymentStatus.UNHEALTHY, "")},
            "It could not be built.",
        ),
        ("", {}, "it says nothing"),
    ],
)
def test_the_reason_is_the_one_that_helps(
    message: str, deployments: dict[str, DeploymentStatusOverview], told: str
) -> None:
    failed = ApplicationStatusOverview(ApplicationStatus.DEPLOY_FAILED, message, 0.0, deployments)
    assert why_failed(failed) == told


def test_where_serve_listens_is_not_changed_by_a_config() -> None:
    config = read_config(ONE_MACHINE)
    require_door(config, HTTPOptions(host="127.0.0.1", port=8000, keep_alive_timeout_s=1))
    for there in (HTTPOptions(host="0.0.0.0", port=8000), HTTPOptions(host="127.0.0.1", port=9000)):
        told = f"listen on 127.0.0.1:8000, and it listens on {there.host}:{there.port} already"
        with pytest.raises(ConfigError, match=told):
            require_door(config, there)
