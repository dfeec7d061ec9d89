"""The stack's own life: what it listens on, what it leaves behind, what it survives."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.clients import Traffic
from tests.e2e.exposed import assert_closed_but_for_the_token
from tests.stack import SAMPLE_MODEL, Stack, command_of, memory_bytes, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(900)]

OPTIONS = {"context": 512, "slots": 2, "threads": 1}
ROUNDS = 20
WARM_UP = 3
RECOVERY_S = 90.0
# One generous bound for machines that are busy; the benchmark has the real figures.
STOP_S = 30.0


def start(home: Path, *arguments: str) -> Stack:
    return Stack(home, "--models", str(SAMPLE_MODEL.parent), *arguments)


def load(stack: Stack, name: str) -> dict[str, Any]:
    answer = stack.load(SAMPLE_MODEL, name=name, options=OPTIONS)
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with start(tmp_path_factory.mktemp("life"), "--routers", "2") as running:
        yield running


def test_nothing_answers_from_another_address(stack: Stack) -> None:
    load(stack, "quiet")
    assert_closed_but_for_the_token(stack)
    assert stack.unload("quiet").status_code == 200


def test_rounds_of_load_chat_unload_leave_nothing_behind(stack: Stack) -> None:
    def one_round(number: int) -> None:
        load(stack, f"round-{number}")
        assert stack.chat(f"round-{number}").status_code == 200
        assert stack.unload(f"round-{number}").status_code == 200
        wait_until(lambda: not stack.named(f"round-{number}"), 10, "every process of the round gone")

    # Python's and Ray's own processes grow while they do things for the first times.
    for number in range(WARM_UP):
        one_round(number)
    before = memory_bytes(stack.processes())
    for number in range(WARM_UP, WARM_UP + ROUNDS):
        one_round(number)
    # Idle workers of Ray's come and go; what leaks stays.
    wait_until(
        lambda: memory_bytes(stack.processes()) - before < 100 * 2**20,
        30,
        f"at most 100 MiB more than {before} bytes after {ROUNDS} rounds",
    )
    assert stack.management("GET", "status").json()["models"] == []


def phase(stack: Stack, model: str) -> str | None:
    """From a control that may be away just now."""
    try:
        status = stack.status(model)
    except (httpx.TransportError, ValueError, KeyError):
        return None
    return None if status is None else str(status["phase"])


def kill(processes: list[psutil.Process]) -> float:
    assert processes, "there must be something to kill"
    for process in processes:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
    return time.monotonic()


def test_killing_each_part_fails_only_what_ran_on_it(stack: Stack) -> None:
    engine = load(stack, "victim")["replicas"][0]["pid"]
    load(stack, "bystander")
    models = ("victim", "bystander")
    with Traffic(stack, models) as traffic:

        def back(moment: float) -> None:
            for model in models:
                wait_until(
                    lambda model=model: traffic.served_since(moment, model),
                    RECOVERY_S,
                    f"{model} served again",
                )

        back(time.monotonic())
        back(kill([psutil.Process(engine)]))
        back(kill(stack.named("ray::ServeReplica:xgen-engine-victim")))
        assert traffic.failures("bystander") == [], "another model's engine is no concern of this one's"
        routed = time.monotonic()
        back(kill(stack.named("ray::ServeReplica:xgen-router")[:1]))
        controlled = time.monotonic()
        back(kill(stack.named("ray::ServeReplica:xgen-control")))
        assert traffic.failures("bystander", controlled) == [], "control is not on the way of any request"
        assert traffic.failures("victim", controlled) == []
        assert len(traffic.failures("bystander", routed)) <= 2, "one at most was on the router that died"
    # Control has taken over what runs: nothing was started anew, and nothing is forgotten.
    for model in models:
        wait_until(lambda model=model: phase(stack, model) == "ready", RECOVERY_S, f"{model} known again")
    engines = stack.named("bundled_llama_server")
    assert len(engines) == len(models), "no orphan"
    for model in models:
        assert stack.unload(model).status_code == 200
    wait_until(lambda: not stack.named("bundled_llama_server"), 10, "no engine left")


def test_ctrl_c_ends_everything_and_the_next_start_brings_it_back(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        load(stack, "kept")
        assert stack.stop() < STOP_S
        assert stack.process.returncode == 0, "".join(stack.output)
        stack.wait_for_end(30)
        stack.start()
        status = wait_until(lambda: stack.status("kept"), 5, "the model remembered")
        assert status["phase"] == "ready", status["reason"]
        assert status["origin"] == "api"
        assert stack.chat("kept").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_start_that_is_under_way(tmp_path: Path, number: signal.Signals) -> None:
    stack = start(tmp_path)

    def begin() -> None:
        with contextlib.suppress(AssertionError):
            stack.start()

    starting = threading.Thread(target=begin)
    starting.start()
    wait_until(lambda: stack.named("raylet/raylet"), 60, "Ray on its way")
    stack.process.send_signal(number)
    stack.process.wait(STOP_S)
    starting.join(STOP_S)
    assert stack.process.returncode == 130, "".join(stack.output)
    # An agent of Ray that was starting itself looks for its raylet once it runs.
    stack.wait_for_end(60)


def test_ctrl_c_lets_a_running_stream_finish(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        load(stack, "busy")
        body = {
            "model": "busy",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 120,
            "stream": True,
            "ignore_eos": True,
        }
        lines: list[str] = []
        address = f"{stack.url}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, timeout=60, trust_env=False) as answer:
            stream = answer.iter_lines()
            lines.append(next(stream))
            stopper = threading.Thread(target=stack.stop)
            stopper.start()
            lines.extend(stream)
        stopper.join(STOP_S * 2)
        assert "data: [DONE]" in lines
        stack.wait_for_end(30)


def test_a_kill_of_the_whole_stack_leaves_no_process(tmp_path: Path) -> None:
    with start(tmp_path) as stack:
        load(stack, "orphan")
        kill([psutil.Process(stack.process.pid)])
        stack.wait_for_end(60)


def test_a_taken_port_and_a_shared_state_are_refused(tmp_path: Path, stack: Stack) -> None:
    assert stack.management("GET", "status").status_code == 200, "the port is taken"
    second = Stack(tmp_path, port=stack.port)
    with pytest.raises(AssertionError):
        second.start()
    assert "cannot listen" in "".join(second.output)
    third = Stack(stack.home)
    with pytest.raises(AssertionError):
        third.start()
    assert "another xgen-ray" in "".join(third.output)


def test_without_keys_only_loopback_is_served(tmp_path: Path) -> None:
    exposed = Stack(tmp_path, "--host", "0.0.0.0")
    with pytest.raises(AssertionError):
        exposed.start()
    assert "API keys" in "".join(exposed.output)


def test_with_keys_every_door_asks_for_one(tmp_path: Path) -> None:
    file = keys_file(tmp_path, "bob: sk-bob")
    with start(tmp_path, "--api-key", "alice=sk-alice", "--api-keys-file", str(file)) as stack:

        def statuses(key: str | None) -> set[int]:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            doors = ("/v1/models", "/api/management/status", "/api/management/gpus")
            ask: dict[str, Any] = {"headers": headers, "timeout": 60, "trust_env": False}
            return {httpx.get(stack.url + path, **ask).status_code for path in doors}

        assert [statuses(key) for key in (None, "sk-alice", "sk-bob")] == [{401}, {200}, {200}]
        commands = [" ".join(command_of(process)) for process in stack.processes()]
        own = [command for command in commands if "xgen_ray up" in command]
        assert not [command for command in commands if "sk-alice" in command and command not in own]
        keys_file(tmp_path, "carol: sk-carol")
        wait_until(lambda: statuses("sk-carol") == {200}, 10, "the file's new key let in at every door")
        assert [statuses(key) for key in (None, "sk-alice", "sk-bob")] == [{401}, {200}, {401}]


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.touch(mode=0o600)
    path.write_text(text)
    return path
