"""The script that starts Prometheus and Grafana, with stand-ins that say how they were started."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster_configs.monitoring import FOLDER
from tests.stack import wait_until

# It says by a file that it runs, and ends when that file goes.
STAND_IN = """#!/bin/sh
env > "$0.started.new" && mv "$0.started.new" "$0.started"
while [ -e "$0.started" ]; do sleep 0.05; done
exit 3
"""


class Programs:
    """Stand-ins on a PATH of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("prometheus", "grafana"):
            (folder / name).write_text(STAND_IN)
            (folder / name).chmod(0o755)

    def started(self, name: str) -> dict[str, str]:
        """The environment that it was started with."""
        said = self.folder / f"{name}.started"
        wait_until(said.exists, 30, f"{name} has started")
        return dict(line.partition("=")[::2] for line in said.read_text().splitlines())

    def end(self, name: str) -> None:
        (self.folder / f"{name}.started").unlink()


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "bin")


@contextmanager
def running(programs: Programs, data: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, **settings, "PATH": f"{programs.folder}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["sh", str(FOLDER / "start.sh"), str(data)], env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.parametrize("first", ["prometheus", "grafana"])
def test_whichever_ends_first_ends_the_other(programs: Programs, tmp_path: Path, first: str) -> None:
    with running(programs, tmp_path / "data") as process:
        for name in ("prometheus", "grafana"):
            programs.started(name)
        programs.end(first)
        assert process.wait(30) == 3, "how the first one ended"


def test_it_ends_when_it_is_told_to(programs: Programs, tmp_path: Path) -> None:
    with running(programs, tmp_path / "data") as process:
        for name in ("prometheus", "grafana"):
            programs.started(name)
        process.terminate()
        assert process.wait(30) == 0


def test_rays_dashboard_may_show_what_grafana_shows_on_loopback(programs: Programs, tmp_path: Path) -> None:
    dashboards = tmp_path / "ray" / "session_latest" / "metrics" / "grafana" / "dashboards"
    dashboards.mkdir(parents=True)
    with running(programs, tmp_path / "data", RAY_TEMP_DIR=str(tmp_path / "ray")):
        told = programs.started("grafana")
    assert told["RAY_DASHBOARDS"] == str(dashboards)
    assert told["GF_SECURITY_ALLOW_EMBEDDING"] == told["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert told["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert told["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
