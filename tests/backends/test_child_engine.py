import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.backends.plans import facts, plan
from xgen_ray.backends.engine import EngineAdapter, EngineLoad, create_adapter
from xgen_ray.errors import EngineFailed, WrongState
from xgen_ray.models.types import ModelTask
from xgen_ray.process import FailureClass
from xgen_ray.schema import Progress

Fake = Callable[[str], tuple[str, ...]]


def adapter(command: tuple[str, ...], folder: Path, **options: Any) -> EngineAdapter:
    return create_adapter(
        plan(command=command, **options), host="127.0.0.1", base_env=os.environ, cache_dir=folder
    )


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where answers of builds are kept; shared, so that each build is asked once."""
    return tmp_path_factory.mktemp("answers")


def ignore(_: Progress) -> None:
    pass


def alive(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid)


async def test_loads_reports_and_leaves_nothing_behind(fake: Fake, answers: Path) -> None:
    engine = adapter(fake("good"), answers)
    heard: list[Progress] = []
    assert not engine.is_loaded
    async with engine:
        address = await engine.load(heard.append)
        assert engine.is_loaded
        assert await engine.health()
        status = await engine.status()
        assert status.loaded
        assert status.load == EngineLoad(running=2, waiting=5, slots=4)
        assert alive(status.pid)
        assert address.url.startswith("http://127.0.0.1:")
    assert not alive(status.pid)
    assert not engine.is_loaded
    assert not await engine.health()
    assert (await engine.wait()).failure is FailureClass.STOPPED
    assert [progress.stage for progress in heard if progress.stage != "load"] == ["start", "canary"]
    loading = [progress for progress in heard if progress.stage == "load"]
    assert all(progress.total_bytes == 2**30 for progress in loading)


async def test_the_key_is_random_each_time_and_never_shown(fake: Fake, answers: Path) -> None:
    keys = set()
    for _ in range(2):
        engine = adapter(fake("good"), answers)
        async with engine:
            address = await engine.load(ignore)
        keys.add(address.key)
        assert address.key not in repr(address)
        log = "\n".join(engine.logs().tail(1000))
        assert "the key is" in log
        assert address.key not in log
    assert len(keys) == 2
    assert all(len(key) >= 32 for key in keys)


@pytest.mark.parametrize("task", list(ModelTask))
async def test_each_task_is_tried_in_its_own_way(fake: Fake, answers: Path, task: ModelTask) -> None:
    async with adapter(fake("good"), answers, task=task) as engine:
        await engine.load(ignore)
        assert engine.is_loaded


@pytest.mark.parametrize(
    ("behaviour", "task", "failure", "words"),
    [
        ("cannot-compute", ModelTask.GENERATE, FailureClass.CANARY_FAILED, "500: .*the template is broken"),
        ("computes-nothing", ModelTask.GENERATE, FailureClass.CANARY_FAILED, "without a result"),
        ("zero-vector", ModelTask.EMBED, FailureClass.CANARY_FAILED, "without a result"),
        ("dies-computing", ModelTask.GENERATE, FailureClass.ILLEGAL_INSTRUCTION, "another processor"),
        ("bad-model", ModelTask.GENERATE, FailureClass.BAD_MODEL_FILE, "not a GGUF file"),
        ("every-port-taken", ModelTask.GENERATE, FailureClass.PORT_IN_USE, "could not listen"),
        ("missing-library", ModelTask.GENERATE, FailureClass.MISSING_LIBRARY, "libfoo"),
    ],
)
async def test_a_failure_is_told_in_words_with_the_log(
    fake: Fake, answers: Path, behaviour: str, task: ModelTask, failure: FailureClass, words: str
) -> None:
    engine = adapter(fake(behaviour), answers, task=task)
    with pytest.raises(EngineFailed, match=words) as caught:
        async with engine:
            await engine.load(ignore)
    assert caught.value.failure == failure
    assert not engine.is_loaded
    if failure is not FailureClass.ILLEGAL_INSTRUCTION:
        assert caught.value.log_tail


async def test_a_command_that_drops_the_key_is_told_of(fake: Fake, answers: Path) -> None:
    """The engine would compute for anybody; ours comes with a key, which it then does not look at."""
    engine = adapter(("env", "-u", "LLAMA_API_KEY", *fake("good")), answers)
    with pytest.raises(EngineFailed, match="without its key with 200") as caught:
        async with engine:
            await engine.load(ignore)
    assert caught.value.failure == FailureClass.CANARY_FAILED
    assert not engine.is_loaded


async def test_a_model_without_a_chat_template_is_tried_without_chat(fake: Fake, answers: Path) -> None:
    async with adapter(fake("good"), answers, model=facts(has_chat_template=False)) as engine:
        await engine.load(ignore)
        assert engine.is_loaded


async def test_a_port_that_was_taken_meanwhile_is_changed(fake: Fake, answers: Path, tmp_path: Path) -> None:
    marker = tmp_path / "taken"
    async with adapter(fake(f"port-taken:{marker}"), answers) as engine:
        address = await engine.load(ignore)
        assert f"--port {address.url.rsplit(':', 1)[1]} " not in marker.read_text()
        assert any("starting again" in line for line in engine.logs().tail(100))


async def test_leaving_while_it_loads_ends_it(fake: Fake, answers: Path) -> None:
    engine = adapter(fake("never-ready"), answers)
    started = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.stage == "load":
            started.set()

    async with engine:
        loading = asyncio.create_task(engine.load(note))
        await asyncio.wait_for(started.wait(), 20)
        pid = (await engine.status()).pid
        assert alive(pid)
        loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
    assert not alive(pid)


async def test_a_death_is_noticed(fake: Fake, answers: Path) -> None:
    async with adapter(fake("good"), answers) as engine:
        await engine.load(ignore)
        pid = (await engine.status()).pid
        assert pid is not None
        psutil.Process(pid).kill()
        failure = await asyncio.wait_for(engine.wait(), 20)
        assert failure.failure is FailureClass.KILLED
        assert not engine.is_loaded
        assert not await engine.health()
        status = await engine.status()
        assert (status.pid, status.loaded, status.load) == (None, False, None)


async def test_an_engine_without_figures_has_no_load(fake: Fake, answers: Path) -> None:
    async with adapter(fake("no-metrics"), answers) as engine:
        await engine.load(ignore)
        status = await engine.status()
        assert status.loaded
        assert status.load is None


async def test_what_the_platform_owns_never_reaches_the_engine(fake: Fake, answers: Path) -> None:
    engine = create_adapter(
        plan(command=fake("good")),
        host="127.0.0.1",
        base_env={**os.environ, "LLAMA_ARG_PORT": "1", "LLAMA_API_KEY": "of the operator"},
        cache_dir=answers,
    )
    async with engine:
        address = await engine.load(ignore)
        pid = (await engine.status()).pid
        seen = psutil.Process(pid).environ()
    assert seen["LLAMA_API_KEY"] == address.key
    assert "LLAMA_ARG_PORT" not in seen
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"


async def test_an_engine_is_loaded_once(fake: Fake, answers: Path) -> None:
    async with adapter(fake("good"), answers) as engine:
        with pytest.raises(WrongState, match="call load first"):
            await engine.wait()
        await engine.load(ignore)
        with pytest.raises(WrongState, match="loaded once"):
            await engine.load(ignore)
