"""The management API on the real stack: bad input gets a clear error and nothing else changes, and what
an operator sees of a load, a download, a plan and a log is what happens.
"""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fakes.hub import Faults, Repo, StandInHub
from tests.models.build import safetensors, write_gguf
from tests.stack import SAMPLE_MODEL, Stack, wait_until
from xgen_ray.backends.trial_model import trial_model

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

GOOD = "good"
OPTIONS = {"context": 512, "slots": 2, "threads": 1}
TINY = "tiny.gguf"
TINY_OPTIONS = {"context": 256, "slots": 2, "threads": 1}
# The hub serves a file in pieces of this size; a stalled one stops after the first.
PIECE = 64 * 1024
SOON_S = 60.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with one good model and everything that is not one."""
    folder = tmp_path_factory.mktemp("models")
    _link_or_copy(SAMPLE_MODEL, folder / "good.gguf")
    trial_model(folder).rename(folder / TINY)
    with SAMPLE_MODEL.open("rb") as whole:
        (folder / "truncated.gguf").write_bytes(whole.read(4 * 2**20))
    lying = b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62) + bytes(4096)
    (folder / "lying.gguf").write_bytes(lying)
    (folder / "letter.gguf").write_text("Dear engine, this is not a model.\n" * 100)
    (folder / "empty").mkdir()
    (folder / "no-config").mkdir()
    (folder / "no-config" / "model.safetensors").write_bytes(safetensors({"a": ("F32", [1], 4)}))
    write_gguf(folder / "unheard-of.gguf", "frobnicator")
    write_gguf(folder / "enormous.gguf", block_count=100, context_length=2**20, attention__key_length=4096)
    (folder / "way-out.gguf").symlink_to(SAMPLE_MODEL)
    return folder


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def hub() -> Iterator[StandInHub]:
    with StandInHub().running() as running:
        yield running


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, models: Path, hub: StandInHub, tiny: bytes
) -> Iterator[Stack]:
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    home = tmp_path_factory.mktemp("managed")
    with Stack(home, "--models", str(models), environment=environment) as running:
        answer = running.load(models / "good.gguf", name=GOOD, options=OPTIONS)
        assert answer.status_code == 200, answer.text
        yield running


@pytest.fixture(scope="module")
def tiny(models: Path) -> bytes:
    """A real model that is large enough for a download to be resumed: bytes behind the last tensor do not
    matter to anyone.
    """
    return (models / TINY).read_bytes() + bytes(4 * 2**20)


@pytest.fixture(autouse=True)
def _unharmed(stack: Stack, hub: StandInHub) -> Iterator[None]:
    """Whatever a test does: it leaves nothing behind, and the good model's engine has not even blinked."""
    before = engines(stack)
    yield
    hub.faults = Faults()
    assert {model["name"]: model["phase"] for model in statuses(stack)} == {GOOD: "ready"}
    assert engines(stack) == before
    answer = stack.chat(GOOD, max_tokens=1)
    assert answer.status_code == 200, answer.text


def engines(stack: Stack) -> set[int]:
    return {process.pid for process in stack.named("bundled_llama_server")}


def statuses(stack: Stack) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = stack.management("GET", "status").json()["models"]
    return models


def listed(stack: Stack) -> set[str]:
    answer = httpx.get(f"{stack.url}/v1/models", timeout=30, trust_env=False).json()
    return {model["id"] for model in answer["data"]}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


def wait_for_phase(stack: Stack, name: str, *phases: str) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        status = stack.status(name)
        return status if status is not None and status["phase"] in phases else None

    found: dict[str, Any] = wait_until(there, SOON_S, f"{name} {' or '.join(phases)}")
    return found


def unload(stack: Stack, name: str) -> None:
    answer = stack.unload(name)
    assert answer.status_code == 200, answer.text
    assert stack.status(name) is None


# ---- requests that are refused before anything happens ------------------------------------------


def test_a_missing_file_is_told_with_the_name_that_comes_near(stack: Stack, models: Path) -> None:
    answer = stack.load(models / "goood.gguf")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "model_not_found"
    assert "Did you mean good.gguf" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/etc/passwd", "way-out.gguf", "../escape.gguf", "/etc/no-such-file"])
def test_a_path_outside_the_model_directories_is_refused(stack: Stack, models: Path, path: str) -> None:
    for call in ("load", "plan"):
        answer = stack.management("POST", call, json={"model": str(models / path)})
        assert answer.status_code == 403, answer.text
        assert error_of(answer)["code"] == "path_not_allowed"
        assert str(models) in error_of(answer)["message"], "it says where models may lie"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"options": {"contxt": 512}}, "options.contxt", "not permitted"),
        ({"options": {"context": -1}}, "options.context", "-1"),
        ({"options": {"slots": 0}}, "options.slots", "0"),
        ({"options": {"threads": "many"}}, "options.threads", "integer"),
        ({"options": {"backend": "magic"}}, "options.backend", "llama-server-cpu"),
        ({"replicas": -2}, "replicas", "-2"),
        ({"name": "a name with spaces"}, "name", "pattern"),
        ({"model": ""}, "model", "1 character"),
        ({"model": "ftp://example.org/m.gguf"}, "model", "hf:org/name"),
        ({"model": "hf:lonely"}, "model", "organisation"),
        ({"model": 7}, "model", "string"),
        ({"surprise": True}, "surprise", "not permitted"),
    ],
)
def test_a_bad_field_is_named(
    stack: Stack, models: Path, change: dict[str, Any], param: str, words: str
) -> None:
    answer = stack.management("POST", "load", json={"model": str(models / TINY), **change})
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["param"] == param
    assert words in error_of(answer)["message"]


def test_bodies_that_are_no_json_or_too_large_are_refused(stack: Stack) -> None:
    def post(content: bytes, kind: str = "application/json") -> httpx.Response:
        return stack.management("POST", "load", content=content, headers={"Content-Type": kind})

    broken = post(b'{"model": ')
    assert broken.status_code == 400
    assert "not valid JSON" in error_of(broken)["message"]
    assert post(b"[]").status_code == 400
    assert post(b'{"model": "x"}', "text/plain").status_code == 415
    large = post(b'{"model": "' + b"x" * 2**21 + b'"}')
    assert large.status_code == 413
    assert "1,048,576" in error_of(large)["message"]


def test_a_name_belongs_to_one_model(stack: Stack, models: Path) -> None:
    other = stack.load(models / TINY, name=GOOD, options=TINY_OPTIONS)
    assert other.status_code == 409
    assert error_of(other)["code"] == "name_conflict"
    assert "good.gguf" in error_of(other)["message"]
    changed = stack.load(models / "good.gguf", name=GOOD, options={**OPTIONS, "slots": 1})
    assert changed.status_code == 409
    assert "other options" in error_of(changed)["message"]
    same = stack.load(models / "good.gguf", name=GOOD, options=OPTIONS)
    assert same.status_code == 200, "asking again for what is there is no conflict"


def test_what_is_not_loaded_can_be_neither_unloaded_nor_read(stack: Stack) -> None:
    for answer in (stack.unload("nobody"), stack.management("GET", "logs?model=nobody")):
        assert answer.status_code == 404
        assert GOOD in error_of(answer)["message"], "it names what is there"


# ---- loads that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "status", "code", "words"),
    [
        ("truncated.gguf", {}, 422, "bad_model_file", ("truncated.gguf", "bytes")),
        ("lying.gguf", {}, 422, "bad_model_file", ("lying.gguf",)),
        ("letter.gguf", {}, 422, "bad_model_file", ("letter.gguf", "GGUF")),
        ("empty", {}, 422, "bad_model_file", ("empty", "config.json")),
        ("no-config", {}, 422, "bad_model_file", ("no-config", "config.json")),
        ("good.gguf", {"context": 500_000_000}, 409, "placement_refused", ("500000000", "8192")),
        ("enormous.gguf", {"context": 2**20}, 409, "placement_refused", ("GiB", "Lower the context")),
        ("good.gguf", {"backend": "vllm-cpu"}, 409, "placement_refused", ("vllm-cpu", "gguf")),
        ("good.gguf", {"task": "rerank"}, 409, "placement_refused", ("rerank",)),
    ],
)
def test_a_load_that_cannot_be_says_why(
    stack: Stack,
    models: Path,
    model: str,
    options: dict[str, Any],
    status: int,
    code: str,
    words: tuple[str, ...],
) -> None:
    answer = stack.load(models / model, name="hopeless", options=options)
    assert answer.status_code == status, answer.text
    failed = stack.status("hopeless")
    assert failed is not None
    assert (failed["engines"], failed["failures"]) == ([], []), "no engine has to be started to find out"
    error = error_of(answer)
    assert error["code"] == code
    assert all(word in error["message"] for word in words), error["message"]
    if code == "placement_refused":
        reasons = {item["backend"]: item["reasons"] for item in error["details"]["candidates"]}
        assert all(reasons.values()), "every backend that was considered says why not"
    assert_failed(stack, "hopeless", error["message"])
    unload(stack, "hopeless")


def assert_failed(stack: Stack, name: str, message: str) -> None:
    """A failed load stays in sight with its reason, and is offered to nobody."""
    status = stack.status(name)
    assert status is not None
    assert (status["phase"], status["reason"], status["endpoint"]) == ("failed", message, None)
    wait_until(lambda: listed(stack) == {GOOD}, SOON_S, "routers to offer what can be had")
    refused = stack.chat(name)
    assert refused.status_code == 502
    assert message in error_of(refused)["message"]


def test_an_architecture_that_the_engine_does_not_know(stack: Stack, models: Path) -> None:
    answer = stack.load(models / "unheard-of.gguf", name="strange")
    assert answer.status_code == 502, answer.text
    error = error_of(answer)
    assert "frobnicator" in error["message"]
    assert error["details"]["failure"] == "unsupported_architecture"
    assert any("unknown model architecture" in line for line in error["details"]["log_tail"])
    assert_failed(stack, "strange", error["message"])
    # The engine is gone, its last words are not.
    page = stack.management("GET", "logs?model=strange").json()
    assert any("unknown model architecture" in line for line in page["lines"])
    unload(stack, "strange")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slot-prompt-similarty", "0.1"], "did you mean --slot-prompt-similarity?"),
        (["--port", "1"], "the platform decides where an engine listens"),
    ],
)
def test_an_extra_argument_that_is_not_the_users_to_give(
    stack: Stack, models: Path, arguments: list[str], words: str
) -> None:
    options = {**TINY_OPTIONS, "extra_args": arguments}
    answer = stack.load(models / TINY, name="meddled", options=options)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["param"] == "options.extra_args"
    assert words in error["message"]
    unload(stack, "meddled")


# ---- loads that succeed -------------------------------------------------------------------------


def test_the_same_load_twice_at_once_starts_one_engine(stack: Stack, models: Path) -> None:
    before = engines(stack)
    with ThreadPoolExecutor(2) as callers:
        answers = list(
            callers.map(lambda _: stack.load(models / TINY, name="twin", options=TINY_OPTIONS), range(2))
        )
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    assert len({answer.json()["replicas"][0]["pid"] for answer in answers}) == 1
    assert len(engines(stack) - before) == 1
    unload(stack, "twin")


def test_a_name_can_be_used_again_after_a_failure(stack: Stack, models: Path) -> None:
    assert stack.load(models / "letter.gguf", name="mended").status_code == 422
    again = stack.load(models / TINY, name="mended", options=TINY_OPTIONS)
    assert again.status_code == 200, again.text
    assert again.json()["endpoint"] == f"{stack.url}/v1"
    unload(stack, "mended")


def test_a_model_that_is_going_cannot_be_loaded_until_it_is_gone(stack: Stack, models: Path) -> None:
    def load() -> httpx.Response:
        return stack.load(models / "good.gguf", name="leaving", options=OPTIONS)

    assert load().status_code == 200
    body = {
        "model": "leaving",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 480,
        "stream": True,
        "ignore_eos": True,
    }
    address = f"{stack.url}/v1/chat/completions"
    with ThreadPoolExecutor(1) as caller:
        with httpx.stream("POST", address, json=body, timeout=60, trust_env=False) as answer:
            lines = answer.iter_lines()  # kept: an iterator that is dropped closes its connection
            next(lines)
            unloading = caller.submit(stack.unload, "leaving")
            wait_for_phase(stack, "leaving", "unloading")
            again = load()
            assert again.status_code == 409
            assert error_of(again)["code"] == "wrong_state"
            wait_until(lambda: "leaving" not in listed(stack), SOON_S, "routers to offer it no more")
            assert stack.chat("leaving").status_code == 404, "new requests are not for a model that goes"
            assert not unloading.done(), "the running one may finish"
        assert unloading.result(SOON_S).status_code == 200
    assert stack.status("leaving") is None


def test_a_load_can_be_watched_and_its_first_request_waits(
    stack: Stack, hub: StandInHub, tiny: bytes
) -> None:
    """From a download through the start to the first answer, all seen from outside."""
    hub.repos["org/watched"] = Repo({TINY: tiny})
    released = stall(hub)
    started = load_from_hub(stack, "watched", wait=False)
    assert started.status_code == 202, started.text
    assert started.json()["phase"] == "resolving"
    downloading = wait_until(lambda: progress_beyond(stack, "watched", 0), SOON_S, "bytes counted")
    assert downloading["phase"] == "resolving"
    progress = downloading["progress"]
    assert (progress["stage"], progress["total_bytes"]) == ("download", len(tiny))
    assert 0 < progress["done_bytes"] <= PIECE
    assert "downloading hf:org/watched" in progress["message"]
    seen: list[tuple[str, str | None]] = [(downloading["phase"], progress["stage"])]
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(complete, stack, "watched")
        time.sleep(0.2)  # long enough to be sure that it waits: there is no sign of it outside
        assert not waiting.done()
        released.set()
        while not waiting.done():
            status = stack.status("watched")
            assert status is not None
            seen.append((status["phase"], (status["progress"] or {}).get("stage")))
        assert waiting.result().status_code == 200, waiting.result().text
    phases = list(dict.fromkeys(phase for phase, _ in seen))
    assert phases in (["resolving", "loading", "ready"], ["resolving", "loading"]), phases
    unload(stack, "watched")


def stall(hub: StandInHub) -> threading.Event:
    """From now on downloads stop after their first piece, until the event is set."""
    released = hub.faults.stall[TINY] = threading.Event()
    return released


def load_from_hub(stack: Stack, repo: str, *, wait: bool = True) -> httpx.Response:
    body = {"model": f"hf:org/{repo}:{TINY}", "name": repo, "options": TINY_OPTIONS}
    return stack.management("POST", f"load?wait={str(wait).lower()}", json=body)


def complete(stack: Stack, model: str) -> httpx.Response:
    """The tiny model has no chat template."""
    body = {"model": model, "prompt": "Hi", "max_tokens": 2}
    return httpx.post(f"{stack.url}/v1/completions", json=body, timeout=SOON_S * 2, trust_env=False)


def progress_beyond(stack: Stack, name: str, count: int) -> dict[str, Any] | None:
    status = stack.status(name)
    progress = (status or {}).get("progress") or {}
    return status if (progress.get("done_bytes") or 0) > count else None


def test_a_load_can_be_taken_back_while_it_downloads(stack: Stack, hub: StandInHub, tiny: bytes) -> None:
    hub.repos["org/unwanted"] = Repo({TINY: tiny})
    stall(hub)
    with ThreadPoolExecutor(1) as caller:
        loading = caller.submit(load_from_hub, stack, "unwanted")
        wait_until(lambda: progress_beyond(stack, "unwanted", 0), SOON_S, "the download under way")
        unload(stack, "unwanted")
        assert_taken_back(loading)


def test_a_load_can_be_taken_back_while_the_engine_starts(stack: Stack, models: Path) -> None:
    before = engines(stack)
    with ThreadPoolExecutor(1) as caller:
        loading = caller.submit(stack.load, models / TINY, name="unwanted", options=TINY_OPTIONS)
        wait_for_phase(stack, "unwanted", "loading")
        unload(stack, "unwanted")
        assert_taken_back(loading)
    assert engines(stack) == before


def assert_taken_back(loading: "Future[httpx.Response]") -> None:
    answer = loading.result(SOON_S)
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "wrong_state"
    assert "unloaded while it was loading" in error_of(answer)["message"]


# ---- downloads that fail, and go on -------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("hf:org/nowhere", 404, "org/nowhere"),
        ("hf:org/there:other.gguf", 404, "tiny.gguf"),
        ("hf:org/there@v9", 404, "v9"),
        ("hf:org/closed", 502, "gated"),
    ],
)
def test_a_download_that_cannot_be_says_why(
    stack: Stack, hub: StandInHub, tiny: bytes, source: str, status: int, words: str
) -> None:
    hub.repos["org/there"] = Repo({TINY: tiny})
    hub.repos["org/closed"] = Repo({TINY: tiny}, gated=True)
    answer = stack.load(source, name="hopeless")
    assert answer.status_code == status, answer.text
    assert words in error_of(answer)["message"]
    assert_failed(stack, "hopeless", error_of(answer)["message"])
    unload(stack, "hopeless")


def test_a_download_that_breaks_off_for_good_goes_on_at_the_next_load(
    stack: Stack, hub: StandInHub, tiny: bytes
) -> None:
    hub.repos["org/broken"] = Repo({TINY: tiny})
    half = len(tiny) // 2
    # The first request is for the header alone.
    hub.faults.drop_after[TINY] = [len(tiny), half, *[0] * 20]
    answer = load_from_hub(stack, "broken")
    assert answer.status_code == 502, answer.text
    assert error_of(answer)["code"] == "download_failed"
    assert "failed 5 times in a row" in error_of(answer)["message"]
    hub.faults.drop_after.clear()
    before = len(hub.seen)
    assert load_from_hub(stack, "broken").status_code == 200
    ranges = [seen.range for seen in hub.seen[before:] if seen.method == "GET" and "storage" in seen.path]
    ranges = [asked for asked in ranges if asked is None or asked.endswith("-")]
    assert ranges == [f"bytes={half}-"], "only the other half was fetched"
    unload(stack, "broken")


# ---- control dies in mid-load -------------------------------------------------------------------


def kill_control(stack: Stack) -> None:
    killed = stack.named("ray::ServeReplica:xgen-control")
    assert killed
    for process in killed:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(killed, timeout=10)


def answers(stack: Stack, name: str, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The model's status, from a control that may be away just now."""

    def look() -> dict[str, Any] | None:
        try:
            status = stack.status(name)
        except (httpx.TransportError, json.JSONDecodeError, KeyError):
            return None
        return status if status is not None and accept(status) else None

    found: dict[str, Any] = wait_until(look, SOON_S, f"{name} known to the new control")
    return found


def test_a_download_is_taken_up_again_when_control_dies(stack: Stack, hub: StandInHub, tiny: bytes) -> None:
    hub.repos["org/durable"] = Repo({TINY: tiny})
    released = stall(hub)
    assert load_from_hub(stack, "durable", wait=False).status_code == 202
    wait_until(lambda: progress_beyond(stack, "durable", 0), SOON_S, "the download under way")
    before = len(hub.seen)
    kill_control(stack)
    answers(stack, "durable", lambda status: (status["progress"] or {}).get("done_bytes") is not None)
    released.set()
    answers(stack, "durable", lambda status: status["phase"] == "ready")
    ranges = [seen.range for seen in hub.seen[before:] if seen.method == "GET" and "storage" in seen.path]
    assert ranges, "the download went on"
    assert all(ranges), "what was there was not fetched again"
    assert complete(stack, "durable").status_code == 200
    answers(stack, GOOD, lambda status: status["phase"] == "ready")
    unload(stack, "durable")


def test_a_start_is_taken_up_again_when_control_dies(stack: Stack, models: Path) -> None:
    before = engines(stack)
    body = {"model": str(models / TINY), "name": "durable", "options": TINY_OPTIONS}
    assert stack.management("POST", "load?wait=false", json=body).status_code == 202
    wait_for_phase(stack, "durable", "loading")
    kill_control(stack)
    answers(stack, "durable", lambda status: status["phase"] == "ready")
    assert complete(stack, "durable").status_code == 200
    assert len(engines(stack) - before) == 1, "one engine, however many controls have wished for it"
    answers(stack, GOOD, lambda status: status["phase"] == "ready")
    unload(stack, "durable")


def test_a_restart_starts_another_engine_and_requests_wait_for_it(stack: Stack, models: Path) -> None:
    assert stack.load(models / TINY, name="again", options=TINY_OPTIONS).status_code == 200
    before = engines(stack)
    answer = stack.management("POST", "restart", json={"name": "again"})
    assert (answer.status_code, answer.json()["phase"]) == (200, "resolving")
    wait_until(lambda: before - engines(stack), SOON_S, "the old engine gone")
    assert complete(stack, "again").status_code == 200
    after = engines(stack)
    assert (len(before - after), len(after - before)) == (1, 1)
    unload(stack, "again")
    assert stack.management("POST", "restart", json={"name": "again"}).status_code == 404


# ---- questions ----------------------------------------------------------------------------------


def test_a_plan_tells_what_a_load_would_do_and_does_nothing(stack: Stack, models: Path) -> None:
    body = {"model": str(models / TINY), "options": TINY_OPTIONS}
    plan = stack.management("POST", "plan", json=body).json()
    assert plan["accepted"]
    assert plan["backend"] == "llama-server-cpu"
    assert plan["argv"][plan["argv"].index("--model") + 1] == body["model"]
    assert plan["options"]["context"] == TINY_OPTIONS["context"]
    assert plan["footprint_bytes"] == sum(line["size_bytes"] for line in plan["footprint"]) > 0
    others = {item["backend"]: item for item in plan["candidates"] if item["backend"] != plan["backend"]}
    assert others
    assert all(item["reasons"] for item in others.values())
    assert "safetensors" in others["vllm-cpu"]["reasons"][0]


def test_a_plan_refuses_the_arguments_that_a_load_would_refuse(stack: Stack, models: Path) -> None:
    options = {**TINY_OPTIONS, "extra_args": ["--no-such-flag"]}
    body = {"model": str(models / TINY), "name": "flagged", "options": options}
    planned, loaded = (stack.management("POST", call, json=body) for call in ("plan", "load"))
    assert (planned.status_code, loaded.status_code) == (400, 400)
    assert "--no-such-flag" in planned.json()["error"]["message"]
    assert planned.json()["error"]["message"] in loaded.json()["error"]["message"]
    unload(stack, "flagged")


def test_a_plan_that_refuses_has_the_numbers(stack: Stack, models: Path) -> None:
    body = {"model": str(models / "enormous.gguf"), "options": {"context": 2**20}}
    answer = stack.management("POST", "plan", json=body)
    assert answer.status_code == 200, "a refusal is an answer"
    plan = answer.json()
    assert not plan["accepted"]
    assert "GiB" in plan["message"]
    cpu = next(item for item in plan["candidates"] if item["backend"] == "llama-server-cpu")
    assert not cpu["fits"]
    assert cpu["needs_bytes"] > psutil.virtual_memory().total
    missing = stack.management("POST", "plan", json={"model": "hf:org/never-fetched"})
    assert missing.status_code == 404, "a plan downloads nothing"


def test_gpus_and_backends_explain_themselves(stack: Stack) -> None:
    report = stack.management("GET", "gpus").json()
    assert report["success"] is True
    assert report["gpu_type"] in ("cuda", "rocm", "metal", "gpu", "cpu")
    assert report["recommended_backend"] in ("vllm", "llama-server", "cpu")
    assert "llama-server-cpu" in report["available_backends"]
    assert report["detection_method"]
    for gpu in report["gpus"]:
        assert set(gpu) >= {"id", "name", "type", "available", "memory_gb", "memory"}
    (node,) = report["nodes"]
    assert node["cpu_count"] == psutil.cpu_count()
    assert node["memory_total_bytes"] == psutil.virtual_memory().total
    assert all(line["reason"] for line in node["detectors"] if not line["found"])
    backends = stack.management("GET", "backends").json()["nodes"][node["node"]]
    assert all(backend["reason"] for backend in backends)
    available = {backend["backend"] for backend in backends if backend["available"]}
    assert available == set(report["available_backends"])


def test_logs_are_read_in_pages(stack: Stack) -> None:
    first = stack.management("GET", f"logs?model={GOOD}&limit=3").json()
    assert len(first["lines"]) == 3
    assert first["replica_id"]
    second = stack.management("GET", f"logs?model={GOOD}&limit=3&after={first['next']}").json()
    assert second["lines"] != first["lines"]
    assert second["next"] == first["next"] + 3
    replica = first["replica_id"]
    assert stack.management("GET", f"logs?model={GOOD}&replica={replica}").status_code == 200
    other = stack.management("GET", f"logs?model={GOOD}&replica=nobody")
    assert other.status_code == 404
    assert replica in error_of(other)["message"]


def test_logs_are_followed_until_the_model_is_gone(stack: Stack, models: Path) -> None:
    assert stack.load(models / TINY, name="talker", options=TINY_OPTIONS).status_code == 200
    address = f"{stack.url}/api/management/logs?model=talker&follow=true&limit=10000"
    with httpx.stream("GET", address, timeout=SOON_S, trust_env=False) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        first = next_page(lines)
        assert complete(stack, "talker").status_code == 200
        then = next_page(lines)
        assert then["next"] > first["next"]
        unload(stack, "talker")
        ending = list(lines)
    assert "event: error" in ending
    assert "talker" in ending[ending.index("event: error") + 1]


def test_a_log_is_followed_from_an_engine_that_was_killed_to_its_successors_first_line(
    stack: Stack, models: Path, tmp_path: Path
) -> None:
    """Also by one who was asleep all that time, and has seen more lines than the successor has printed."""
    loaded = stack.load(models / TINY, name="mortal", options=TINY_OPTIONS)
    assert loaded.status_code == 200, loaded.text
    (first,) = loaded.json()["replicas"]
    # Lines for the successor to be behind with.
    assert complete(stack, "mortal").status_code == 200
    address = f"{stack.url}/api/management/logs?model=mortal&follow=true&limit=10000"
    written = tmp_path / "followed.jsonl"
    with (
        httpx.stream("GET", address, timeout=SOON_S, trust_env=False) as answer,
        following(stack, "mortal", written) as sleeper,
    ):
        lines = answer.iter_lines()
        pages = [next_page(lines)]
        wait_until(lambda: len(followed(written)) >= len(pages[0]["lines"]), SOON_S, "its lines followed")
        sleeper.send_signal(signal.SIGSTOP)
        os.kill(first["pid"], signal.SIGKILL)
        there = wait_until(lambda: successors_log(stack, "mortal", first), SOON_S, "its successor ready")
        sleeper.send_signal(signal.SIGCONT)
        until = time.monotonic() + SOON_S
        while pages[-1]["replica_id"] != there["replica_id"] or pages[-1]["next"] < there["next"]:
            assert time.monotonic() < until, pages[-1]
            pages.append(next_page(lines))
        streamed = [(page["replica_id"], line) for page in pages for line in page["lines"]]
        expected = [line for line in streamed if line[0] == first["replica_id"]]
        assert len(expected) == max(
            page["next"] for page in pages if page["replica_id"] == first["replica_id"]
        )
        expected += [(there["replica_id"], line) for line in there["lines"]]
        assert streamed[: len(expected)] == expected
        wait_until(lambda: followed(written)[: len(expected)] == expected, SOON_S, "each line followed once")
    unload(stack, "mortal")


@contextmanager
def following(stack: Stack, name: str, written: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """``logs -f`` under way, writing its lines into a file."""
    command = [sys.executable, "-m", "xgen_ray", "logs", name, "-f", "--json", "--url", stack.url]
    with written.open("wb") as lines, subprocess.Popen(command, stdout=lines) as process:
        try:
            yield process
        finally:
            process.kill()


def followed(written: Path) -> list[tuple[str, str]]:
    """The lines that are there whole, each with its replica."""
    whole = written.read_bytes().rpartition(b"\n")[0].splitlines()
    return [(told["replica_id"], told["line"]) for told in map(json.loads, whole)]


def successors_log(stack: Stack, name: str, gone: dict[str, Any]) -> dict[str, Any] | None:
    """All that the engine in place of the one that is gone has printed, once it is ready."""
    replicas = (stack.status(name) or {}).get("replicas") or ()
    if not any(one["replica_id"] != gone["replica_id"] and one["state"] == "ready" for one in replicas):
        return None
    log: dict[str, Any] = stack.management("GET", f"logs?model={name}&limit=10000").json()
    return log if log["replica_id"] != gone["replica_id"] else None


def next_page(lines: Iterator[str]) -> dict[str, Any]:
    line = next(line for line in lines if line.startswith("data: "))
    page: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return page
