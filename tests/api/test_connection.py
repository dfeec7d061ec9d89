"""The connection to an engine, against a server that sends exactly the bytes that a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from xgen_ray.api.connection import PIECE_BYTES, Break, Connection, UpstreamBroke

HEAD = b"POST / HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Content-Type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"


class Server:
    """Answers every request with the next of ``answers``, each a list of writes; None closes."""

    def __init__(self, answers: list[list[bytes | None]], *, reads: bool = True) -> None:
        self._answers = answers
        self._reads = reads
        self.connections = 0
        self.lost = asyncio.Event()
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self._answers:
                if self._reads:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                    await reader.readexactly(length)
                for piece in self._answers.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    self.sent += len(piece)
                    await asyncio.sleep(0)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.lost.set()
            writer.close()


class Line:
    """Opens connections to one server."""

    def __init__(self, server: Server, port: int, silence_s: float) -> None:
        self.server = server
        self.kept: list[Connection] = []
        self._port = port
        self._silence_s = silence_s

    async def open(self) -> Connection:
        loop = asyncio.get_running_loop()
        make: Callable[[], Connection] = lambda: Connection(self.kept, self._silence_s)  # noqa: E731
        return (await loop.create_connection(make, "127.0.0.1", self._port))[1]


@contextlib.asynccontextmanager
async def line(
    *answers: list[bytes | None], silence_s: float = 20.0, reads: bool = True
) -> AsyncIterator[Line]:
    server = Server(list(answers), reads=reads)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield Line(server, listening.sockets[0].getsockname()[1], silence_s)
    finally:
        listening.close()


async def whole(connection: Connection) -> bytes:
    pieces = bytearray()
    while piece := await connection.read():
        pieces += piece
    assert connection.at_end
    return bytes(pieces)


async def ask(connection: Connection) -> bytes:
    await connection.ask(HEAD, b"{}")
    return await whole(connection)


@pytest.mark.parametrize(
    "writes",
    [
        [HELLO],
        [bytes([byte]) for byte in HELLO],
        [CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"],
        [CHUNKED, b"2\r\nh", b"e\r\n3\r\nllo\r\n", b"0\r\n", b"\r\n"],
        [OK + b"\r\nhel", b"lo", None],
        [b"HTTP/1.1 100 Continue\r\nx-note: early\r\n\r\n", HELLO],
    ],
    ids=["length", "byte by byte", "chunks", "torn chunks", "to the end of the connection", "after a 100"],
)
async def test_an_answer_is_read_to_its_end_however_it_is_cut(writes: list[bytes | None]) -> None:
    async with line(writes) as server:
        connection = await server.open()
        assert await ask(connection) == b"hello"
        assert connection.status == 200
        assert b"x-note" not in connection.headers
        connection.close()


async def test_a_kept_connection_serves_again_and_forgets_the_answer_before() -> None:
    first: list[bytes | None] = [OK + b"X-One: 1\r\ncontent-length: 5\r\n\r\nhello"]
    async with line(first, [b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]) as server:
        connection = await server.open()
        assert await ask(connection) == b"hello"
        assert connection.headers == {b"x-one": b"1", b"content-length": b"5"}
        connection.close(keep_s=20)
        assert server.kept == [connection]
        assert await ask(server.kept.pop()) == b""
        assert (connection.status, connection.headers) == (404, {b"content-length": b"0"})
        assert server.server.connections == 1
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        [OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello"],
        [b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello"],
        [OK + b"\r\nhello", None],
    ],
    ids=["says close", "HTTP/1.0", "ended with the connection"],
)
async def test_a_connection_that_will_not_last_is_not_kept(answer: list[bytes | None]) -> None:
    async with line(answer) as server:
        connection = await server.open()
        assert await ask(connection) == b"hello"
        connection.close(keep_s=20)
        assert server.kept == []


async def test_an_answer_that_is_left_ends_the_connection() -> None:
    async with line([CHUNKED + b"2\r\nhe\r\n"]) as server:
        connection = await server.open()
        await connection.ask(HEAD, b"{}")
        assert await connection.read() == b"he"
        connection.close(keep_s=20)
        await asyncio.wait_for(server.server.lost.wait(), 20)
        assert server.kept == []


async def test_a_free_connection_is_let_go_after_its_time() -> None:
    async with line([HELLO]) as server:
        connection = await server.open()
        await ask(connection)
        connection.close(keep_s=0.01)
        await asyncio.wait_for(server.server.lost.wait(), 20)
        assert server.kept == []


@pytest.mark.parametrize("unasked", [HELLO, b"\x00", None], ids=["an answer", "noise", "its end"])
async def test_a_free_connection_that_says_anything_is_let_go(unasked: bytes | None) -> None:
    answers: list[bytes | None] = [HELLO, unasked]
    async with line(answers) as server:
        connection = await server.open()
        await connection.ask(HEAD, b"{}")
        with contextlib.suppress(UpstreamBroke):
            await connection.read()
        connection.close(keep_s=20)
        async with asyncio.timeout(20):
            while server.kept:  # noqa: ASYNC110  # nobody is told that it is gone
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "writes",
    [
        [None],
        [OK, None],
        [OK + b"content-length: 9\r\n\r\nhello", None],
        [CHUNKED + b"5\r\nhello\r\n", None],
        [CHUNKED + b"5\r\nhello\r\nx\r\n"],
        [b"no HTTP at all\r\n\r\n"],
        [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"],
        [OK + b"x: " + b"y" * 70_000 + b"\r\n\r\n"],
    ],
    ids=[
        "at once", "in its head", "short", "no last chunk", "bad chunk", "no HTTP", "upgrade", "endless head",
    ],
)  # fmt: skip
async def test_an_answer_that_breaks_off_is_never_taken_for_whole(writes: list[bytes | None]) -> None:
    async with line(writes) as server:
        connection = await server.open()
        with pytest.raises(UpstreamBroke) as broke:
            await ask(connection)
        assert broke.value.how is Break.DROPPED
        connection.close(keep_s=20)
        assert server.kept == []


async def test_what_came_before_the_break_is_read_first() -> None:
    async with line([CHUNKED + b"5\r\nhello\r\n", None]) as server:
        connection = await server.open()
        await connection.ask(HEAD, b"{}")
        await server.server.lost.wait()
        assert await connection.read() == b"hello"
        with pytest.raises(UpstreamBroke):
            await connection.read()
        connection.close()


@pytest.mark.parametrize("writes", [[], [CHUNKED + b"5\r\nhello\r\n"]], ids=["no head", "in the middle"])
async def test_silence_has_an_end(writes: list[bytes | None]) -> None:
    async with line(writes, silence_s=0.05) as server:
        connection = await server.open()
        with pytest.raises(UpstreamBroke) as broke:
            await ask(connection)
        assert broke.value.how is Break.SILENT
        connection.close()


async def test_an_engine_waits_for_a_reader_who_is_slow_and_is_not_called_silent() -> None:
    size, pieces = 256 * 1024, 64
    body = [b"x" * size] * pieces
    async with line([OK + b"content-length: %d\r\n\r\n" % (size * pieces), *body], silence_s=0.5) as server:
        connection = await server.open()
        await connection.ask(HEAD, b"{}")
        await asyncio.sleep(0.8)
        # What fits between the two is in the sockets' buffers: nothing like the whole.
        assert server.server.sent < size * pieces
        assert len(await whole(connection)) == size * pieces
        connection.close()


async def test_an_engine_may_answer_before_it_has_heard_all() -> None:
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno"
    async with line([refusal], reads=False) as server:
        connection = await server.open()
        content = b"x" * (64 * PIECE_BYTES)
        await connection.ask(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(content), content)
        assert (connection.status, await whole(connection)) == (413, b"no")
        connection.close(keep_s=20)
        assert server.kept == []
