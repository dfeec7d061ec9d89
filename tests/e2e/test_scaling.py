"""Models that grow with their load, sleep and wake, and one name over unlike engines: the real stack with
real engines, asked as clients ask.
"""

import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.clients import Traffic
from tests.stack import SAMPLE_MODEL, Stack, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

OPTIONS = {"context": 512, "slots": 2, "threads": 1}
QUICK = {"upscale_delay_s": 1.0, "downscale_delay_s": 4.0, "ttl_s": 6.0}
PATIENCE_S = 90.0
CROWD = 100
# The bundled engine, which leaves a line for every start and starts no model while the door is shut.
ENGINE = """\
case "$*" in *--alias*)
    echo "$*" >> {folder}/starts
    while [ -e {folder}/shut ]; do sleep 0.1; done ;;
esac
exec {python} -m xgen_ray.backends.bundled_llama_server "$@"
"""


class Starts:
    """Of engines: how often, and not yet. ``command`` starts one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        script = folder / "engine.sh"
        script.write_text(ENGINE.format(folder=shlex.quote(str(folder)), python=shlex.quote(sys.executable)))
        self.command = shlex.join(["sh", str(script)])

    def of(self, name: str) -> int:
        journal = self._folder / "starts"
        lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
        return sum(words[words.index("--alias") + 1] == name for words in lines)

    @contextmanager
    def held(self) -> Iterator[Path]:
        """None gets on while the file that this gives is there."""
        shut = self._folder / "shut"
        shut.touch()
        try:
            yield shut
        finally:
            shut.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    return Starts(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, starts: Starts) -> Iterator[Stack]:
    arguments = ("--models", str(SAMPLE_MODEL.parent), "--engine", f"llama-server-cpu={starts.command}")
    with Stack(tmp_path_factory.mktemp("scaling"), *arguments) as running:
        yield running


def load(stack: Stack, **request: Any) -> dict[str, Any]:
    answer = stack.load(SAMPLE_MODEL, **{"options": OPTIONS, **request})
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    return status


def ready(stack: Stack, name: str) -> int:
    status = stack.status(name)
    return 0 if status is None else sum(one["state"] == "ready" for one in status["replicas"])


def phase(stack: Stack, name: str) -> str | None:
    status = stack.status(name)
    return None if status is None else str(status["phase"])


def events(stack: Stack, name: str) -> Counter[str]:
    """How often what has happened to the model."""
    told = stack.management("GET", "events").json()["events"]
    return Counter(event["kind"] for event in told if event["model"] == name)


def test_it_grows_shrinks_sleeps_and_wakes_and_no_request_fails(stack: Stack, starts: Starts) -> None:
    scaling = {"min_replicas": 0, "max_replicas": 2, **QUICK}
    load(stack, name="tide", scaling=scaling)
    with Traffic(stack, ["tide"] * 6, max_tokens=16) as clients:
        wait_until(lambda: ready(stack, "tide") == 2, PATIENCE_S, "a second engine under load")
    assert clients.failures() == []
    # From here on each start is a wake: what a crowd's load asks for besides would be growth.
    steady = {"name": "tide", "scaling": {**scaling, "upscale_delay_s": 3600}}
    assert stack.management("POST", "scale", json=steady).status_code == 200
    wait_until(lambda: phase(stack, "tide") == "sleeping", PATIENCE_S, "asleep, since nobody asks")
    wait_until(lambda: not stack.named("bundled_llama_server"), 20, "no engine of a model that sleeps")
    listed = httpx.get(f"{stack.url}/v1/models", trust_env=False).json()["data"]
    assert [(model["id"], model["ready"]) for model in listed] == [("tide", False)]

    # A crowd at its door wakes it once, and everybody is answered.
    started, woken = starts.of("tide"), events(stack, "tide")["woke"]
    answers: list[httpx.Response] = []
    crowd = [threading.Thread(target=lambda: answers.append(stack.chat("tide"))) for _ in range(CROWD)]
    for client in crowd:
        client.start()
    for client in crowd:
        client.join(120)
    assert Counter(answer.status_code for answer in answers) == {200: CROWD}
    assert starts.of("tide") - started == 1
    assert events(stack, "tide")["woke"] - woken == 1
    assert stack.unload("tide").status_code == 200


def test_a_waiting_stream_has_signs_of_life(stack: Stack, starts: Starts) -> None:
    load(stack, name="nap", scaling={"min_replicas": 0, **QUICK, "ttl_s": 0.0})
    wait_until(lambda: phase(stack, "nap") == "sleeping", PATIENCE_S, "asleep")
    body = {"model": "nap", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "stream": True}
    lines: list[str] = []
    with (
        starts.held() as shut,
        httpx.stream(
            "POST", f"{stack.url}/v1/chat/completions", json=body, timeout=120, trust_env=False
        ) as answer,
    ):
        for line in filter(None, answer.iter_lines()):
            lines.append(line)
            # However fast the machine is, the model is not there before it has been heard of.
            if line.startswith(":"):
                shut.unlink(missing_ok=True)
    assert stack.unload("nap").status_code == 200
    assert lines[0].startswith(":"), lines[:3]
    assert any(line.startswith("data: {") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_one_name_over_unlike_engines(stack: Stack) -> None:
    load(stack, name="one", pool="server", options={**OPTIONS, "backend": "llama-server-cpu"})
    load(stack, name="one", pool="python", options={**OPTIONS, "backend": "llama-cpp-python", "slots": 1})
    (listed,) = httpx.get(f"{stack.url}/v1/models", trust_env=False).json()["data"]
    assert listed["id"] == "one"
    assert {pool["name"]: pool["backends"] for pool in listed["pools"]} == {
        "server": ["llama-server-cpu"],
        "python": ["llama-cpp-python"],
    }
    assert all(pool["precision"] == "Q4_1" for pool in listed["pools"])
    for asked, pool in (
        ("one@server", "server"),
        ("one@llama-cpp-python", "python"),
        ("one@python", "python"),
    ):
        answer = stack.chat(asked)
        assert (answer.status_code, answer.headers["x-xgen-pool"]) == (200, pool), answer.text

    with Traffic(stack, ["one"] * 4, max_tokens=16) as clients:
        both = {"server", "python"}
        wait_until(lambda: set(clients.served_by()) == both, PATIENCE_S, "answers from both")
        status = stack.status("one@server")
        assert status is not None
        psutil.Process(status["replicas"][0]["pid"]).kill()
        wait_until(lambda: ready(stack, "one@server") == 0, 20, "the engine's end seen")
        wait_until(lambda: ready(stack, "one@server") == 1, PATIENCE_S, "the engine back")
    # What was under way on it, and had its first byte, is lost; nothing else.
    assert len(clients.failures()) <= OPTIONS["slots"], clients.failures()

    assert stack.unload("one@python").status_code == 200
    assert stack.chat("one").headers["x-xgen-pool"] == "server"
    assert stack.chat("one@python").status_code == 404
    assert stack.unload("one").status_code == 200
    assert stack.chat("one").status_code == 404


def test_an_operator_scales_by_hand(stack: Stack) -> None:
    pid = load(stack, name="hand")["replicas"][0]["pid"]
    with Traffic(stack, ["hand"] * 2, max_tokens=16) as clients:
        answer = stack.management("POST", "scale", json={"name": "hand", "replicas": 2})
        assert answer.status_code == 200, answer.text
        wait_until(lambda: ready(stack, "hand") == 2, PATIENCE_S, "two engines")
        assert psutil.pid_exists(pid), "the first was left alone"
        stack.management("POST", "scale", json={"name": "hand", "replicas": 1})
        wait_until(lambda: ready(stack, "hand") == 1, PATIENCE_S, "one engine")
    assert clients.failures() == []
    assert stack.unload("hand").status_code == 200
