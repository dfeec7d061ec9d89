import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.backends.plans import facts
from xgen_ray.backends.engine import EngineAddress, EngineLoad
from xgen_ray.backends.engine_client import EngineClient, read_load
from xgen_ray.errors import EngineFailed
from xgen_ray.models.types import ModelTask

VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", EngineLoad(1, 2, 8)),
        ("llamacpp:requests_processing 0\n", EngineLoad(0, 0, 8)),
        (VLLM, EngineLoad(4, 7, 8, 0.5)),
        ("vllm:num_requests_running 1\nvllm:kv_cache_usage_perc NaN\n", EngineLoad(1, 0, 8)),
        ("", None),
        ("something_else 1\n", None),
        ("llamacpp:requests_processing NaN\n", None),
        ("llamacpp:requests_processing {broken", None),
    ],
)
def test_reads_the_load_that_an_engine_reports(text: str, load: EngineLoad | None) -> None:
    assert read_load(text, 8) == load


@contextlib.asynccontextmanager
async def answering(*statuses: int) -> AsyncIterator[str]:
    """Something that answers each request with the next of these; its address."""
    left = list(statuses)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        head = f"HTTP/1.1 {left.pop(0)} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert left == []


@pytest.mark.parametrize("statuses", [(401,), (403,), (503, 401)])
async def test_an_engine_that_asks_for_its_key_is_taken(statuses: tuple[int, ...]) -> None:
    async with answering(*statuses) as url, EngineClient(EngineAddress(url, "k3y")) as client:
        await client.refuses_strangers(facts(), ModelTask.GENERATE, 10)


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        ((200,), "computes for whoever reaches its port"),
        ((400,), "computes for whoever reaches its port"),
        ((503, 500), "does not say whether it asks for its key"),
    ],
)
async def test_one_that_does_not_is_not_taken(statuses: tuple[int, ...], words: str) -> None:
    async with answering(*statuses) as url, EngineClient(EngineAddress(url, "k3y")) as client:
        with pytest.raises(EngineFailed, match=words):
            await client.refuses_strangers(facts(), ModelTask.GENERATE, 10)
