"""Following all models of a server until they have arrived."""

import threading

import pytest

from tests.cli.fleet import KEY, Fleet, ready
from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode
from xgen_ray.cli.waiting import follow_all
from xgen_ray.schema import Phase, StatusReport


def test_all_are_followed_until_they_are_ready_sleep_or_have_failed(
    fleet: Fleet, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    loading = {"phase": Phase.RESOLVING, "reason": "looking for its files"}
    fleet.models["small"] = ready("small").model_copy(update=loading)
    fleet.models["asleep"] = ready("asleep").model_copy(update={"phase": Phase.SLEEPING, "reason": "unused"})
    fleet.models["broken"] = ready("broken").model_copy(update=loading)
    with Server(url, KEY) as server:
        statuses = follow_all(server, threading.Event(), every_s=0.01)
    phases = {status.name: status.phase for status in statuses}
    assert phases == {"small": Phase.READY, "asleep": Phase.SLEEPING, "broken": Phase.FAILED}
    told = capsys.readouterr().err
    assert "small: ready on llama-server-cpu" in told
    assert "asleep: sleeps; the next request wakes it" in told
    assert "broken: The engine ran out of memory." in told


def test_a_server_that_has_no_answer_is_asked_again(fleet: Fleet, url: str) -> None:
    fleet.models["small"] = ready("small")
    fleet.absences = 1
    with Server(url, KEY) as server:
        assert [status.name for status in follow_all(server, threading.Event(), every_s=0.01)] == ["small"]


def test_a_server_that_takes_the_key_no_more_is_not_asked_for_ever(fleet: Fleet, url: str) -> None:
    fleet.models["small"] = ready("small")
    with Server(url, "sk-other") as server, pytest.raises(CommandError) as caught:
        follow_all(server, threading.Event(), every_s=0.01)
    assert caught.value.exit_code is ExitCode.UNAUTHORISED


def test_who_is_told_to_stop_waits_for_nothing(fleet: Fleet, url: str) -> None:
    fleet.models["stuck"] = ready("stuck").model_copy(update={"phase": Phase.LOADING})
    stop = threading.Event()

    class Interrupted(Server):
        def status(self) -> StatusReport:
            stop.set()
            return super().status()

    with Interrupted(url, KEY) as server:
        assert [status.phase for status in follow_all(server, stop, every_s=0.01)] == [Phase.LOADING]
