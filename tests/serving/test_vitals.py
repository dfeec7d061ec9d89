"""What a router doubts, and how an engine that is doubted or dies is found out: real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.backends.plans import plan
from tests.serving.test_dispatcher import choose, dispatcher, table
from tests.stack import NO_TLS, STAND_IN_ENGINE
from xgen_ray.backends.engine import EngineAdapter, create_adapter
from xgen_ray.errors import EngineFailed
from xgen_ray.process import Failure, FailureClass
from xgen_ray.schema import Outcome, Phase
from xgen_ray.serving.vitals import end_of_life, report_of_start

SOON_S = 30.0


def stand_in(folder: Path, *arguments: str) -> EngineAdapter:
    command = (sys.executable, str(STAND_IN_ENGINE), *arguments)
    return create_adapter(plan(command=command), host="127.0.0.1", base_env=os.environ, cache_dir=folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where answers of builds are kept; shared, so that each build is asked once."""
    return tmp_path_factory.mktemp("answers")


class Watched:
    """A loaded stand-in engine whose life is watched, and a way to spoil it."""

    def __init__(self, engine: EngineAdapter, client: httpx.AsyncClient) -> None:
        self.engine = engine
        self.doubted = asyncio.Event()
        self.end = asyncio.create_task(end_of_life(engine, self.doubted))
        self._client = client

    async def set(self, **knobs: object) -> None:
        assert (await self._client.post("/_set", json=knobs)).status_code == 200

    async def until_computed(self, count: int) -> None:
        async with asyncio.timeout(SOON_S):
            while True:
                if (await self._client.get("/_debug")).json()["completed"] >= count:
                    return
                await asyncio.sleep(0.05)

    async def failure(self) -> Failure:
        async with asyncio.timeout(SOON_S):
            return await self.end


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Watched]:
    async with stand_in(folder) as engine:
        address = await engine.load(lambda _: None)
        async with httpx.AsyncClient(base_url=address.url, trust_env=False, verify=NO_TLS) as client:
            watched = Watched(engine, client)
            try:
                yield watched
            finally:
                watched.end.cancel()


async def test_a_replica_that_fails_a_request_is_doubted_once() -> None:
    router = dispatcher(table(a=Phase.READY))
    waiting = asyncio.create_task(router.doubted())
    router.finished(await choose(router), Outcome.OK)
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(2):
        router.finished(await choose(router), Outcome.FAILED)
    assert await waiting == {"r1"}
    again = asyncio.create_task(router.doubted())
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()


async def test_an_engine_that_computes_lives_through_every_doubt(answers: Path) -> None:
    async with watching(answers) as watched:
        watched.doubted.set()
        await watched.until_computed(2)  # the canary of its start, and the proof
        await watched.set(fail_chat=500, fail_first=1)
        watched.doubted.set()
        await watched.until_computed(3)  # one bad answer, and a good one after it
        assert not watched.end.done()


async def test_an_engine_that_computes_no_more_is_given_up(answers: Path) -> None:
    async with watching(answers) as watched:
        await watched.set(fail_chat=500)
        assert await watched.engine.health()
        watched.doubted.set()
        failure = await watched.failure()
    assert failure.failure is FailureClass.WEDGED
    assert "500" in failure.message
    assert "told to fail" in failure.message


async def test_an_engine_that_has_much_to_do_proves_nothing(answers: Path) -> None:
    async with watching(answers) as watched:
        await watched.set(hang=True)
        assert await watched.engine.trouble(0.2) is None


async def test_an_end_is_told_as_what_it_was(answers: Path) -> None:
    async with watching(answers) as watched:
        pid = (await watched.engine.status()).pid
        assert pid is not None
        os.kill(pid, signal.SIGSEGV)
        failure = await watched.failure()
        assert (failure.failure, failure.exit_code) == (FailureClass.CRASHED, -signal.SIGSEGV)
        assert await watched.engine.trouble(1.0) is None


async def test_a_start_that_failed_is_reported_with_the_engine_s_end(answers: Path) -> None:
    fault = "Memory access fault by GPU node-1 (Agent handle: 0x55) on address 0x7f. Reason: Unknown."
    engine = stand_in(answers, "--print", fault, "--exit-code", "134")
    async with engine:
        with pytest.raises(EngineFailed) as caught:
            await engine.load(lambda _: None)
        report = await report_of_start(caught.value, engine)
    assert (report.failure, report.exit_code) == ("gpu_page_fault", 134)
    assert report.evidence == fault
    assert report.advice is not None
    assert report.advice not in report.message


async def test_a_start_that_failed_without_an_end_is_reported_in_its_own_words(answers: Path) -> None:
    engine = stand_in(answers, "--fail-chat", "500")
    async with engine:
        with pytest.raises(EngineFailed) as caught:
            await engine.load(lambda _: None)
        report = await report_of_start(caught.value, engine)
    assert (report.failure, report.exit_code) == ("canary_failed", None)
    assert report.message == caught.value.message
