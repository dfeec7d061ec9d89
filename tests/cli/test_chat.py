"""A conversation on a terminal."""

import os
from collections.abc import Iterator

import pytest

from tests.cli.conftest import program_command
from tests.cli.fleet import KEY, Fleet, ready
from tests.cli.terminal import Terminal, terminal
from xgen_ray.cli.exits import ExitCode


@pytest.fixture(scope="module")
def _program(_served: tuple[Fleet, str]) -> Iterator[Terminal]:
    """One ``chat`` for all tests: starting it takes a second."""
    fleet, url = _served
    fleet.reset()
    fleet.models["small"] = ready("small")
    env = {**os.environ, "XGEN_RAY_URL": url, "XGEN_RAY_API_KEY": KEY}
    with terminal(program_command("chat"), env) as shown:
        shown.wait_for("> ")
        yield shown


@pytest.fixture
def talk(_program: Terminal, fleet: Fleet) -> Terminal:
    """A conversation at its beginning."""
    fleet.models["small"] = ready("small")
    _program.type("/reset\n")
    _program.wait_for("forgotten")
    _program.type("/system\n")
    _program.wait_for("no system message")
    _program.wait_for("> ")
    return _program


def test_turns_build_on_each_other(talk: Terminal, fleet: Fleet) -> None:
    talk.type("hi\n")
    answer = talk.wait_for("12 tokens")
    # Neither the model's escape codes nor its brackets reach the terminal as commands.
    assert "Hello there, [31mred [bold]friend[/bold]." in answer
    assert "tokens/s, first after" in talk.wait_for("> ")
    talk.type("and now?\n")
    talk.wait_for("tokens/s")
    roles = [message["role"] for message in fleet.chats[1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_commands_steer_the_conversation(talk: Terminal, fleet: Fleet) -> None:
    talk.type("hi\n")
    talk.wait_for("tokens/s")
    talk.type("/system be brief\n")
    talk.wait_for("the system message is set")
    talk.type("/reset\n")
    talk.wait_for("forgotten")
    talk.type("/dance\n")
    talk.wait_for("There is no /dance")
    talk.type("again\n")
    talk.wait_for("tokens/s")
    assert fleet.chats[1]["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "again"},
    ]


def test_an_interrupt_stops_the_answer_and_not_the_program(talk: Terminal, fleet: Fleet) -> None:
    talk.type("count\n")
    talk.wait_for("3 4 5 ")
    talk.interrupt()
    talk.wait_for("stopped")
    assert fleet.client_left.wait(10), "the server goes on for nobody"
    talk.wait_for("> ")
    talk.type("hi\n")
    talk.wait_for("12 tokens")
    kept = fleet.chats[1]["messages"][1]
    assert kept["role"] == "assistant"
    assert kept["content"].startswith("0 1 2 3 4 5")


def test_an_error_leaves_the_conversation_standing(talk: Terminal, fleet: Fleet) -> None:
    model = fleet.models.pop("small")
    talk.type("hi\n")
    talk.wait_for("error: no such model")
    fleet.models["small"] = model
    talk.type("hi\n")
    talk.wait_for("12 tokens")
    assert fleet.chats[1]["messages"] == [{"role": "user", "content": "hi"}]


def test_an_interrupt_at_the_prompt_drops_the_line_and_ctrl_d_leaves(talk: Terminal, fleet: Fleet) -> None:
    talk.type("half a li")
    talk.wait_for("half a li")
    talk.interrupt()
    talk.wait_for("> ")
    talk.type("\x04")
    assert talk.leave() == ExitCode.OK
    assert fleet.chats == []
