from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backends.plans import plan
from xgen_ray.backends.rehearsal import rehearse
from xgen_ray.errors import EngineFailed, InvalidRequest, UnknownOption
from xgen_ray.placement.types import Backend

Fake = Callable[[str], tuple[str, ...]]
ENV = {"PATH": "/usr/bin:/bin"}
CPU = Backend.LLAMA_SERVER_CPU


async def test_the_command_that_would_be_run(fake: Fake, tmp_path: Path) -> None:
    made = plan(CPU, fake("serves"), extra_args=("--top-k", "20"))
    argv = await rehearse(made, host="127.0.0.1", base_env=ENV, cache_dir=tmp_path)
    assert argv[: len(made.command)] == made.command
    assert argv[-2:] == ("--top-k", "20")


@pytest.mark.parametrize(
    ("behaviour", "extra_args", "error", "said"),
    [
        ("serves", ("--no-such-flag",), UnknownOption, "has no --no-such-flag"),
        ("serves", ("--host", "0.0.0.0"), InvalidRequest, "the platform decides where an engine listens"),
        ("missing-library", (), EngineFailed, "libfoo"),
    ],
)
async def test_what_a_start_would_be_refused_for(
    behaviour: str,
    extra_args: tuple[str, ...],
    error: type[Exception],
    said: str,
    fake: Fake,
    tmp_path: Path,
) -> None:
    made = plan(CPU, fake(behaviour), extra_args=extra_args)
    with pytest.raises(error, match=said):
        await rehearse(made, host="127.0.0.1", base_env=ENV, cache_dir=tmp_path)
