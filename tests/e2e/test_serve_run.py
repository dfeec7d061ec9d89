"""``serve run`` with the committed config for one machine, as Ray's own documentation starts applications.

It sets no more of the environment than the config's comment, so that Ray Serve runs with its defaults: a
Python proxy in front.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.e2e.exposed import assert_closed_but_for_the_token
from tests.e2e.serve_run import KUBERAY, ServeRun
from tests.fakes.hub import Repo, StandInHub
from tests.stack import SAMPLE_MODEL, wait_until
from xgen_ray.backends.trial_model import trial_model

pytestmark = [pytest.mark.cluster, pytest.mark.engine, pytest.mark.timeout(600)]

DECLARED = "declared"
# Long enough for an answer that takes a minute.
CONTEXT = 4096
WAIT_S = 2.0
SOON_S = 240.0
HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]


def declared(name: str, context: int, **more: Any) -> dict[str, Any]:
    """A model of the config: the sample model under another name."""
    options = {"context": context, "slots": 1, "threads": 1}
    return {"model": f"./models/{SAMPLE_MODEL.name}", "name": name, "options": options, **more}


@pytest.fixture(scope="module")
def hub() -> Iterator[StandInHub]:
    with StandInHub().running() as running:
        yield running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: StandInHub) -> Iterator[ServeRun]:
    control = {"models": [declared(DECLARED, CONTEXT)], "hub_endpoint": hub.endpoint}
    home = tmp_path_factory.mktemp("serve-run")
    with ServeRun(home, control=control, router={"wait_s": WAIT_S}) as running:
        wait_until(lambda: running.serves(DECLARED), SOON_S, "the declared model served")
        yield running
    for process in running.processes():  # what a failed test has left
        process.kill()


@pytest.fixture
def client(stack: ServeRun) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def test_a_declared_model_is_served(stack: ServeRun, client: openai.OpenAI) -> None:
    status = stack.status(DECLARED)
    assert status is not None
    assert (status["origin"], status["endpoint"]) == ("declared", f"{stack.url}/v1")
    assert [model.id for model in client.models.list()] == [DECLARED]
    answer = client.chat.completions.create(model=DECLARED, messages=HELLO, max_tokens=4)
    assert answer.choices[0].message.content


def test_logs_have_requests_and_not_what_control_asks(stack: ServeRun) -> None:
    """Serve's own default would be a line for every call."""
    assert stack.chat(DECLARED).status_code == 200

    def told() -> list[str]:
        routers = stack.logs("ServeReplica:xgen-router")
        return [line for line in routers if f"model={DECLARED} " in line and "outcome=answered" in line]

    assert wait_until(told, 10, "the request's line")
    # Control has asked by now: it could not have the model ready else.
    for replica in ("xgen-router", "xgen-control", "xgen-engine"):
        lines = stack.logs(f"ServeReplica:{replica}")
        assert lines, replica
        assert not [line for line in lines if " CALL " in line or " POST " in line]


def test_nobody_else_is_let_in(stack: ServeRun) -> None:
    assert_closed_but_for_the_token(stack)


def test_an_answer_streams_chunk_by_chunk(client: openai.OpenAI) -> None:
    began = time.monotonic()
    stream = client.chat.completions.create(
        model=DECLARED, messages=HELLO, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    arrivals = [time.monotonic() - began for chunk in stream if chunk.choices]
    # On a busy machine several tokens may come at once.
    assert len(arrivals) > 10
    assert arrivals[0] < arrivals[-1] / 2, "the first chunk did not wait for the last"


def test_a_client_that_goes_away_frees_its_slot(stack: ServeRun) -> None:
    """The only slot is taken by an answer that would run for long; then its client leaves."""
    body = {
        "model": DECLARED,
        "messages": HELLO,
        "max_tokens": CONTEXT - 64,
        "stream": True,
        "ignore_eos": True,
    }
    address = f"{stack.url}/v1/chat/completions"
    with httpx.stream("POST", address, json=body, timeout=60, trust_env=False) as answer:
        chunks = answer.iter_bytes()  # kept: an iterator that is dropped closes its connection
        next(chunks)
        wait_until(lambda: running_requests(stack) == 1, 20, "the engine at work")
    # Control asks every two seconds.
    wait_until(lambda: running_requests(stack) == 0, 10, "the slot free again")
    assert stack.chat(DECLARED).status_code == 200


def running_requests(stack: ServeRun) -> int | None:
    status = stack.status(DECLARED)
    assert status is not None
    running: int | None = status["replicas"][0]["running"]
    return running


def test_a_model_is_loaded_and_unloaded_through_the_api(stack: ServeRun) -> None:
    options = {"context": 512, "slots": 1, "threads": 1}
    answer = stack.load(SAMPLE_MODEL, name="asked-for", options=options)
    assert answer.status_code == 200, answer.text
    assert stack.chat("asked-for").status_code == 200
    assert stack.unload("asked-for").status_code == 200
    assert stack.chat("asked-for").status_code == 404
    assert stack.chat(DECLARED).status_code == 200


def test_a_request_waits_for_a_model_only_so_long(
    stack: ServeRun, hub: StandInHub, tmp_path: Path, client: openai.OpenAI
) -> None:
    """A download that stands still keeps the model loading."""
    hub.repos["org/slow"] = Repo({"slow.gguf": trial_model(tmp_path).read_bytes() + bytes(2**21)})
    hub.faults.stall["slow.gguf"] = threading.Event()
    body = {"model": "hf:org/slow", "name": "slow"}
    assert stack.management("POST", "load?wait=false", json=body).status_code == 202
    wait_until(hub.stalled.is_set, 30, "the download standing still")
    began = time.monotonic()
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="slow", prompt="Hi", max_tokens=1)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert "slow is resolving" in caught.value.message
    assert WAIT_S <= time.monotonic() - began < WAIT_S + 5
    assert stack.unload("slow").status_code == 200


def engines(stack: ServeRun) -> dict[str, list[int]]:
    """Every model's engines, by their processes; only once all are at rest."""
    models = stack.management("GET", "status").json()["models"]
    assert all(model["phase"] == "ready" for model in models), models
    return {model["name"]: [replica["pid"] for replica in model["replicas"]] for model in models}


def at_rest(stack: ServeRun, *names: str) -> bool:
    try:
        models = stack.management("GET", "status").json()["models"]
    except (httpx.TransportError, ValueError, KeyError):
        return False
    return {model["name"]: model["phase"] for model in models} == dict.fromkeys(names, "ready")


def test_a_changed_file_changes_what_changed_and_nothing_else(stack: ServeRun, client: openai.OpenAI) -> None:
    options = {"context": 512, "slots": 1, "threads": 1}
    assert stack.load(SAMPLE_MODEL, name="of-the-api", options=options).status_code == 200
    before = engines(stack)
    stream = client.chat.completions.create(
        model=DECLARED, messages=HELLO, max_tokens=700, stream=True, extra_body={"ignore_eos": True}
    )
    ends: list[str | None] = []
    reader = threading.Thread(target=lambda: ends.extend(_finish(chunk) for chunk in stream))
    reader.start()

    kept = declared(DECLARED, CONTEXT)
    stack.write([kept, declared("second", 512), declared("third", 512)])
    done = stack.apply("--json")
    assert done.returncode == 0, done.stderr
    told = {change["name"]: change["kind"] for change in json.loads(done.stdout)["changes"]}
    assert told == {DECLARED: "keep", "second": "load", "third": "load"}
    wait_until(lambda: at_rest(stack, *before, "second", "third"), SOON_S, "the new ones served")
    after = engines(stack)
    assert {name: after[name] for name in before} == before
    reader.join(SOON_S)
    assert "length" in ends, "a stream ran through it"

    scaled = {**kept, "scaling": {"max_replicas": 2}}
    stack.write([scaled, declared("second", 256)])
    done = stack.apply()
    assert done.returncode == 0, done.stderr
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert [line for line in lines if line[:1] in (["unload"], ["scale"], ["reload"])] == [
        ["unload", "third"],
        ["scale", DECLARED],
        ["reload", "second"],
    ]
    assert "options.context 512 -> 256" in done.stdout
    wait_until(lambda: at_rest(stack, *before, "second"), SOON_S, "the other options served")
    last = engines(stack)
    assert {name: last[name] for name in before} == before
    assert last["second"] != after["second"]


def _finish(chunk: Any) -> str | None:
    return chunk.choices[0].finish_reason if chunk.choices else "no choice"


def test_a_file_with_a_fault_changes_nothing(stack: ServeRun) -> None:
    before, good = engines(stack), stack.config.read_text()
    (control,) = stack.named("ServeReplica:xgen-control")
    stack.config.write_text(good.replace("context: 256", "contxt: 256"))
    done = stack.apply()
    assert done.returncode == 2
    assert "options.contxt: Extra inputs are not permitted" in done.stderr
    stack.config.write_text(good)
    assert control.is_running()
    assert engines(stack) == before


@pytest.mark.parametrize("more", [(), ("--check",)])
def test_a_file_that_would_have_serve_listen_elsewhere_changes_nothing(
    stack: ServeRun, more: tuple[str, ...]
) -> None:
    """Serve would go on listening where it does: with a file for loopback, without keys, on the network."""
    before, good = engines(stack), stack.config.read_text()
    (control,) = stack.named("ServeReplica:xgen-control")
    stack.config.write_text(
        yaml.safe_dump({**stack.content, "http_options": {"host": "127.0.0.1", "port": 9}})
    )
    done = stack.apply(*more)
    stack.config.write_text(good)
    assert done.returncode == 2, done.stdout
    assert f"listen on 127.0.0.1:9, and it listens on 127.0.0.1:{stack.port} already" in done.stderr
    assert control.is_running()
    assert engines(stack) == before


def test_a_file_that_serve_does_not_take_is_undone(stack: ServeRun) -> None:
    """Without a fault, as far as can be seen: only that control cannot start with it."""
    before, good = engines(stack), stack.config.read_text()
    (control,) = stack.named("ServeReplica:xgen-control")
    blocked = stack.home / "blocked"
    blocked.touch()
    bad = yaml.safe_load(good)
    bad["applications"][0]["args"] |= {"models": [], "state_dir": str(blocked / "registry")}
    stack.config.write_text(yaml.safe_dump(bad))
    done = stack.apply()
    stack.config.write_text(good)
    assert done.returncode == 2, done.stdout
    assert "xgen-control: " in done.stderr
    assert f"Not a directory: '{blocked}/registry'" in done.stderr
    assert "What was deployed before is in place again" in done.stderr
    assert not control.is_running(), "Serve had let go of it"
    wait_until(lambda: at_rest(stack, *before), SOON_S, "all models as before")
    assert engines(stack) == before
    assert stack.chat(DECLARED).status_code == 200


def test_the_config_that_kuberay_deploys_is_loaded(stack: ServeRun) -> None:
    """Its own but for the address, the folders and the keys; then what was there before."""
    good = stack.config.read_text()
    (service,) = (one for one in yaml.safe_load_all(KUBERAY.read_text()) if one["kind"] == "RayService")
    stack.config.write_text(yaml.safe_dump(stack.here(yaml.safe_load(service["spec"]["serveConfigV2"]))))
    done = stack.apply()
    assert done.returncode == 0, done.stderr
    wait_until(stack.answers, SOON_S, "both applications")
    assert len(stack.named("ServeReplica:xgen-router")) == 2
    stack.config.write_text(good)
    done = stack.apply()
    assert done.returncode == 0, done.stderr
    wait_until(lambda: stack.serves(DECLARED), SOON_S, "the model of before")


def test_a_wrong_field_is_refused_with_its_name(tmp_path: Path) -> None:
    with ServeRun(tmp_path, control={"model_dir": ["./models"]}) as wrong:
        words = ("model_dir\n", "Extra inputs are not permitted")
        wait_until(lambda: all(word in "".join(wrong.output) for word in words), 60, "the field, by its name")


def test_ctrl_c_ends_everything(stack: ServeRun) -> None:
    """The last of this file: nothing is asked of the stack after it."""
    stack.stop()
    assert stack.process.returncode == 0, "".join(stack.output)
    stack.wait_for_end(15)
