"""What is put in front of HAProxy: its side doors are closed, and it does not outlive its owner."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.environment import NO_METRICS, LocalPorts, loopback_environment, serve_environment
from deployments.haproxy import close_ports, leave_clients_to_the_router
from tests.process.watching import Deaths
from xgen_ray.settings import CONTROL_APP, ROUTER_APP

PROGRAM = Path(__file__).parents[2] / "deployments" / "haproxy.py"


@pytest.mark.parametrize(
    ("line", "closed"),
    [
        ("    bind :9101", "    bind 127.0.0.1:9101"),
        ("  bind *:8404", "  bind 127.0.0.1:8404"),
        ("    bind 0.0.0.0:8000", "    bind 0.0.0.0:8000"),
        ("    bind *:8000", "    bind *:8000"),
        ("    bind 127.0.0.1:8000", "    bind 127.0.0.1:8000"),
        ("    server a 127.0.0.1:30000 check", "    server a 127.0.0.1:30000 check"),
    ],
)
def test_only_side_doors_bound_to_everything_are_closed(line: str, closed: str) -> None:
    """The public port is open to all if the operator says so: Ray writes a star for 0.0.0.0."""
    config = f"frontend x\n{line}\n    mode http\n"
    assert close_ports(config, frozenset({"9101", "8404"})) == f"frontend x\n{closed}\n    mode http\n"


def test_rays_own_template_has_no_open_port_left() -> None:
    """The public port is the operator's choice; the others are in the template's hands."""
    from ray.serve._private import haproxy_templates

    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE.replace("{{ config.", "").replace(" }}", "")
    filled = template.replace("metrics_port", "9101").replace("stats_port", "8404")
    assert close_ports(filled, frozenset({"9101", "8404"})).count("bind 127.0.0.1:") == 2


def test_ray_is_told_that_the_router_watches_its_clients_and_nobody_else() -> None:
    from ray.serve._private.http_util import parse_disconnect_disabled_header

    config = f"backend http-{CONTROL_APP}\n    log global\nbackend http-{ROUTER_APP}\n    log global\n"
    control, _, router = leave_clients_to_the_router(config).partition(f"backend http-{ROUTER_APP}\n")
    assert "set-header" not in control
    _, name, value = router.splitlines()[0].rsplit(" ", 2)
    assert parse_disconnect_disabled_header({name.encode(): value.encode()})


def test_the_script_becomes_the_program_with_its_arguments(tmp_path: Path) -> None:
    config = tmp_path / "a config.cfg"
    config.write_text("frontend x\n  bind *:2\n")
    environment = loopback_environment(tmp_path, LocalPorts(1, 2, 3), Path("/bin/echo"))
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run(
        [script, "-db", "-f", str(config), "-sf", "7"], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == f"-db -f {config} -sf 7\n"
    assert "127.0.0.1:2" in config.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="a child is tied to its parent's life by prctl")
def test_it_does_not_outlive_its_owner(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(PROGRAM), "1,2", "/bin/sleep", "300"]
    owner_program = f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(300)"
    owner = psutil.Popen([sys.executable, "-I", "-S", "-c", owner_program])
    deaths = Deaths()
    try:
        deaths.watch(_wait_for_sleep(owner).pid)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
    assert deaths.survivors(10) == set()
    deaths.close()


def _wait_for_sleep(owner: psutil.Popen) -> psutil.Process:
    for _ in range(1000):
        for child in owner.children():
            if child.name() == "sleep":
                return child
        psutil.wait_procs([owner], timeout=0.02)
    pytest.fail("the program never became the other")


def test_ports_and_files_of_two_stacks_do_not_meet(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    one = loopback_environment(first, LocalPorts(1, 2, 3), Path("/bin/true"))
    other = loopback_environment(second, LocalPorts(4, 5, 6), Path("/bin/true"))
    fixed = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", *NO_METRICS}
    assert not {name for name in one if one[name] == other[name]} - fixed
    assert not set(one) & set(serve_environment())
