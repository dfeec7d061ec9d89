"""Deadlines and ports."""

import socket

import pytest

from xgen_ray.process import free_port, loading_deadline
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
    assert len({free_port() for _ in range(50)}) > 40


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
