"""The committed mixed fleet on one machine: a Hugging Face repository is fetched and served by vLLM, its GGUF
under the same name by llama-server, and vLLM embeds and ranks beside them.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from tests.backends.vllm_standin import EMBED_MODEL, HF_MODEL, REAL_VLLM, VLLM_CACHE, why_no_vllm
from tests.e2e.serve_run import MIXED_FLEET, ServeRun
from tests.e2e.tiny_reranker import write_hf_reranker
from tests.fakes.hub import Announced, Repo, StandInHub
from tests.stack import SAMPLE_MODEL, wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm() or "it is there"),
]
# As the committed file calls them; what the hub has under these names is small.
CHAT, HF, GGUF, EMBED = "qwen3-8b", "qwen3-8b@vllm", "qwen3-8b@gguf", "embed"
RANK = "rank"
CONTEXT = 2048
SMALL = {"slots": 4, "threads": 1}
# vLLM starts in most of a minute, and in several on a busy machine.
LOAD_S = 600.0
GONE_S = 30.0
QUESTION: list[Any] = [{"role": "user", "content": "Tell a story."}]
BEACH, SEA = "A holiday at the beach.", "The sea was warm and we swam every day."
TAXES = "The tax form is due in April."


@pytest.fixture(scope="module")
def hub() -> Iterator[StandInHub]:
    with StandInHub().running() as running:
        folder: dict[str, bytes | Announced] = {file.name: file.read_bytes() for file in HF_MODEL.iterdir()}
        running.repos["Qwen/Qwen3-8B"] = Repo(folder)
        running.repos["Qwen/Qwen3-8B-GGUF"] = Repo({"Qwen3-8B-Q4_K_M.gguf": SAMPLE_MODEL.read_bytes()})
        yield running


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, engine_answers: Path, hub: StandInHub
) -> Iterator[ServeRun]:
    home = tmp_path_factory.mktemp("vllm")
    (home / "downloads").mkdir()
    (home / "downloads" / "engines").symlink_to(engine_answers / "engines")
    ranks = write_hf_reranker(home / "models" / "tiny-reranker", EMBED_MODEL)
    control = {
        "models": [
            *small_models(),
            {"model": str(ranks), "name": RANK, "options": {**SMALL, "context": 128}},
        ],
        "model_dirs": [str(home / "models"), str(EMBED_MODEL.parent)],
        "backend_commands": {"vllm-cpu": [str(REAL_VLLM / "bin" / "python")]},
        "hub_endpoint": hub.endpoint,
    }
    with ServeRun(home, config=MIXED_FLEET, control=control, environment=VLLM_CACHE) as running:
        wait_until(lambda: running.serves(HF, GGUF, EMBED, RANK), LOAD_S, "every declared model served")
        yield running
        left = [process for name in (EMBED, RANK) for process in family(running, name)]
        running.stop()
        wait_until(lambda: not alive(left), GONE_S, "vLLM gone with the stack")


def small_models() -> list[dict[str, Any]]:
    """The models of the committed file, each with one engine that this machine can hold."""
    content = yaml.safe_load(MIXED_FLEET.read_text())
    vllm, gguf, embed = content["applications"][0]["args"]["models"]
    for pool in (vllm, gguf):
        pool["options"] |= {**SMALL, "context": CONTEXT}
        pool["scaling"]["max_replicas"] = 1
    embed |= {"model": str(EMBED_MODEL), "replicas": 1, "options": {**SMALL, "task": "embed", "context": 256}}
    return [vllm, gguf, embed]


@pytest.fixture
def client(stack: ServeRun) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


def test_a_repository_is_fetched_and_served_by_vllm(
    stack: ServeRun, hub: StandInHub, client: openai.OpenAI
) -> None:
    weights = HF_MODEL / "model.safetensors"
    assert hub.served_bytes[weights.name] >= weights.stat().st_size
    status = stack.status(HF)
    assert status is not None
    assert (status["origin"], status["backend"], status["format"]) == ("declared", "vllm-cpu", "safetensors")
    answer = client.chat.completions.create(model=HF, messages=QUESTION, max_tokens=4)
    assert answer.model == CHAT
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


def test_an_error_of_the_engine_is_one_of_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=HF, messages=QUESTION, max_tokens=1_000_000)
    assert str(CONTEXT) in str(caught.value)


def test_status_and_logs_are_vllms(stack: ServeRun) -> None:
    wait_until(lambda: running_requests(stack) == 0, GONE_S, "an engine with nothing to do")
    logs = stack.management("GET", "logs", params={"model": HF, "limit": 1000}).json()
    assert any("vLLM server" in line for line in logs["lines"])


def running_requests(stack: ServeRun) -> int | None:
    status = stack.status(HF)
    assert status is not None
    (replica,) = status["replicas"]
    running: int | None = replica["running"]
    return running


def test_one_name_over_vllm_and_llama_server(client: openai.OpenAI, stack: ServeRun) -> None:
    for pool, names in {HF: (HF, f"{CHAT}@vllm-cpu"), GGUF: (GGUF, f"{CHAT}@llama-server-cpu")}.items():
        for name in names:
            raw = client.chat.completions.with_raw_response.create(
                model=name, messages=QUESTION, max_tokens=2
            )
            assert raw.headers["x-xgen-pool"] == pool.partition("@")[2]
    chats = [stack.chat(CHAT) for _ in range(8)]
    assert [chat.status_code for chat in chats] == [200] * 8, chats[0].text
    assert [model.id for model in client.models.list()] == [CHAT, EMBED, RANK]


def test_vllm_embeds_what_words_mean(client: openai.OpenAI) -> None:
    texts = [SEA, BEACH, TAXES]
    answer = client.embeddings.create(model=EMBED, input=texts)
    assert answer.model == EMBED
    sea, beach, taxes = (item.embedding for item in answer.data)
    # Of length one, so that the product is the cosine.
    assert cosine(sea, sea) == pytest.approx(1, abs=1e-3)
    assert cosine(sea, beach) > cosine(sea, taxes) + 0.2


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vllm_ranks_with_a_cross_encoder_and_with_embeddings(stack: ServeRun) -> None:
    asked = {"query": BEACH, "documents": [TAXES, SEA]}
    ranked = stack.rank(RANK, **asked)
    assert ranked.status_code == 200, ranked.text
    assert ranked.json()["model"] == RANK
    scores = [result["relevance_score"] for result in ranked.json()["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 2
    assert len(stack.rank(RANK, top_n=1, **asked).json()["results"]) == 1
    # That one's weights are random; these know what is alike.
    assert [result["index"] for result in stack.rank(EMBED, **asked).json()["results"]] == [1, 0]
    refused = stack.rank(CHAT, **asked)
    assert refused.status_code == 400
    assert "loaded for generate" in refused.json()["error"]["message"]


def test_a_stream_in_flight_ends_well_when_its_model_is_unloaded(
    client: openai.OpenAI, stack: ServeRun
) -> None:
    """The last one: nothing of that engine is left afterwards, and the others are still there."""
    chats, embeds = family(stack, CHAT), family(stack, EMBED)
    begun, reasons, words = threading.Event(), [], 0

    def read() -> None:
        nonlocal words
        answer = client.chat.completions.create(
            model=HF, messages=QUESTION, max_tokens=80, stream=True, extra_body={"ignore_eos": True}
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
    assert stack.unload(CHAT).status_code == 200
    reader.join(LOAD_S)
    assert not reader.is_alive()
    assert reasons[-1] == "length"
    wait_until(lambda: not alive(chats), GONE_S, "vLLM gone, its worker too")
    assert alive(embeds) == embeds


def family(stack: ServeRun, name: str) -> list[psutil.Process]:
    """The processes of a model's vLLM. Those that it starts have written their names over what Stack knows
    its own by.
    """
    (server,) = (one for one in stack.named("vllm.entrypoints") if name in one.cmdline())
    found = [server, *server.children(recursive=True)]
    names = " ".join(word for one in found for word in one.cmdline())
    assert "VLLM::EngineCore" in names
    assert "VLLM::Worker" in names
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running()]
