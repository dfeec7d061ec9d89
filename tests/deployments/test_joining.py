"""What is found out about a head, and about this machine, before Ray is started."""

import asyncio
import os
import platform
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from deployments.joining import (
    Address,
    HeadFacts,
    ask_head,
    join_address,
    make_token,
    own_address,
    parse_address,
    reach,
    require_same_versions,
    require_token,
    token_path,
    way_to,
    with_token,
)
from xgen_ray.errors import ConfigError, HeadUnreachable, NodeNotStarted, Unauthorized

HEAD = Address("10.0.0.1", 6379)


@pytest.fixture
def listener() -> Iterator[int]:
    """A port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "address", "written"),
    [
        ("10.0.0.1:6400", Address("10.0.0.1", 6400), "10.0.0.1:6400"),
        ("10.0.0.1", Address("10.0.0.1", 6379), "10.0.0.1:6379"),
        ("gpu-1.lab:6400", Address("gpu-1.lab", 6400), "gpu-1.lab:6400"),
        ("[fd00::2]:6400", Address("fd00::2", 6400), "[fd00::2]:6400"),
        ("[fd00::2]", Address("fd00::2", 6379), "[fd00::2]:6379"),
    ],
)
def test_addresses(text: str, address: Address, written: str) -> None:
    assert parse_address(text) == address
    assert str(address) == written


@pytest.mark.parametrize("text", ["", ":6379", "a:b", "a:80", "a:70000", "fd00::2", "http://a:6379"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"as in 10\.0\.0\.1:6379"):
        parse_address(text)


@pytest.mark.parametrize("text", ["127.0.0.1:6379", "localhost", "[::1]:6379"])
def test_a_head_on_loopback_cannot_be_joined(text: str) -> None:
    with pytest.raises(ConfigError, match="this machine alone"):
        join_address(text)


async def test_a_head_that_is_not_there(listener: int, silent_port: int) -> None:
    await reach(Address("127.0.0.1", listener))
    with pytest.raises(HeadUnreachable, match=f"nothing listens at 127.0.0.1:{silent_port}.*node --head"):
        await reach(Address("127.0.0.1", silent_port))


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is known, whatever the network's own servers say of it, and however long they take."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.mark.usefixtures("no_names")
async def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(HeadUnreachable, match="cannot be resolved"):
        await reach(Address("no-such-host.invalid", 6379))


async def test_no_route() -> None:
    """An address that the kernel itself refuses to send to, wherever this runs."""
    with pytest.raises(HeadUnreachable, match=r"no route to 255\.255\.255\.255:6379 \("):
        await reach(Address("255.255.255.255", 6379))


async def test_a_head_that_drops_what_is_sent() -> None:
    """A listener whose queue is full: the kernel answers no more connections."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            with pytest.raises(HeadUnreachable, match=r"did not answer within 0\.5 s.*firewall"):
                await reach(Address(*address), deadline_s=0.5)
        finally:
            for one in waiting:
                one.close()


@asynccontextmanager
async def something_else() -> AsyncIterator[Address]:
    """Answers whoever connects, but not as a head does."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_something_else_that_listens_there(tmp_path: Path) -> None:
    token = tmp_path / "token"
    make_token(token)
    async with something_else() as address:
        with pytest.raises(HeadUnreachable, match="does not answer as the head of a Ray cluster does"):
            await ask_head(address, with_token(os.environ, token), deadline_s=2)


def test_versions_must_be_the_same() -> None:
    ray, python = version("ray"), platform.python_version()
    minor = ".".join(python.split(".")[:2])
    require_same_versions(HEAD, HeadFacts(ray, python))
    with pytest.raises(NodeNotStarted, match=rf"at 10\.0\.0\.1:6379 runs Ray 2\.1\.0, this node Ray {ray}"):
        require_same_versions(HEAD, HeadFacts("2.1.0", python))
    other = HeadFacts(ray, f"{minor}.99")
    with pytest.raises(NodeNotStarted, match=rf"runs Python {minor}\.99, this node Python {python}"):
        require_same_versions(HEAD, other)
    require_same_versions(HEAD, other, match="minor")
    with pytest.raises(NodeNotStarted, match=r"Python 3\.2\.1"):
        require_same_versions(HEAD, HeadFacts(ray, "3.2.1"), match="minor")


def test_this_nodes_own_address(listener: int) -> None:
    assert own_address("127.0.0.1") == own_address("localhost") == own_address("::1") == "127.0.0.1"
    with pytest.raises(ConfigError, match=f"port {listener} of 127.0.0.1 is taken"):
        own_address("127.0.0.1", listener)
    for wrong in ("0.0.0.0", "::", "a-name"):
        with pytest.raises(ConfigError, match="cannot be this node's address"):
            own_address(wrong)


def test_an_address_that_this_machine_has_not_may_be_there_later() -> None:
    with pytest.raises(NodeNotStarted, match="cannot be this node's address"):
        own_address("203.0.113.7")


def test_the_way_to_a_head_says_which_address_is_this_nodes() -> None:
    assert way_to(Address("127.0.0.9", 6379)) == "127.0.0.1"


@pytest.mark.usefixtures("no_names")
def test_there_is_no_way_to_a_name_that_nobody_knows() -> None:
    with pytest.raises(HeadUnreachable, match="cannot be resolved"):
        way_to(Address("no-such-host.invalid", 6379))


def test_a_token_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token"
    assert make_token(path)
    made = path.read_text()
    assert len(made) >= 32
    assert not make_token(path)
    assert path.read_text() == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert require_token(path) is None


def test_a_token_that_is_missing_empty_or_open_is_told(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(Unauthorized, match=f"no token at {path}"):
        require_token(path)
    path.touch(mode=0o600)
    with pytest.raises(Unauthorized, match="is empty"):
        require_token(path)
    path.write_text("0" * 32)
    path.chmod(0o644)
    warning = require_token(path)
    assert warning == f"others can read the token in {path} (mode 644): chmod 600 {path}"


def test_the_token_is_looked_for_where_ray_looks(tmp_path: Path) -> None:
    given = tmp_path / "token"
    assert token_path(given, {"RAY_AUTH_TOKEN": "x"}) == given
    assert token_path(None, {"RAY_AUTH_TOKEN": "x", "RAY_AUTH_TOKEN_PATH": "/a"}) is None
    assert token_path(None, {"RAY_AUTH_TOKEN_PATH": "/a"}) == Path("/a")
    assert token_path(None, {}) == Path.home() / ".ray" / "auth_token"
    assert with_token({"RAY_AUTH_TOKEN": "x", "A": "b"}, given) == {
        "A": "b",
        "RAY_AUTH_TOKEN_PATH": str(given),
    }
    assert with_token({"RAY_AUTH_TOKEN": "x"}, None) == {"RAY_AUTH_TOKEN": "x"}
