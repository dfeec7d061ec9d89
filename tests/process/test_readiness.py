"""Deadlines and ports."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from xgen_ray.process import free_port, loading_deadline, ports
from xgen_ray.process.readiness import someone_listens

GIB = 2**30


def test_the_deadline_grows_with_the_model() -> None:
    assert loading_deadline(0) == 120
    assert loading_deadline(4 * GIB) == 200
    assert loading_deadline(40 * GIB, base_s=10, per_gib_s=1.5) == 70
    assert loading_deadline(-1) == 120


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_free_ports_differ() -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_a_free_port_is_the_source_of_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        of_a_connection = server.getsockname()[1]
    assert all(free_port() < min(of_a_connection, 32768) for _ in range(50))


@pytest.fixture
def fresh_ports() -> Iterator[None]:
    """What a process was given before is forgotten, and forgotten again."""
    ports._candidates.cache_clear()
    yield
    ports._candidates.cache_clear()


@pytest.mark.usefixtures("fresh_ports")
def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(taken, taken + 2))
        monkeypatch.setattr(ports, "_given_to_connections", lambda: range(0))
        assert taken not in {free_port() for _ in range(3)}


@pytest.mark.usefixtures("fresh_ports")
def test_a_system_that_gives_every_port_to_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = tmp_path / "ip_local_port_range"
    everything.write_text("1024\t65535\n", encoding="ascii")
    monkeypatch.setattr(ports, "_GIVEN_TO_CONNECTIONS", everything)
    with socket.create_server(("127.0.0.1", free_port())):
        pass


def test_a_free_port_of_the_other_family() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with socket.create_server(("::1", free_port("::1")), family=socket.AF_INET6):
        pass


async def test_someone_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/health"
        assert await someone_listens(url)
    assert not await someone_listens(url)
    assert not await someone_listens("http://127.0.0.1/health"), "no port, nothing to ask"
