"""One line a request: who, what, where, how it ended; and nothing secret."""

import logging

import httpx
import pytest

from tests.api.stack import stack
from tests.api.support import ENGINE_KEY, NO_TLS, InMemoryDispatcher, die, served, serving
from xgen_ray.api.gateway import Gateway
from xgen_ray.api.keys import ApiKeys
from xgen_ray.schema import ServedModel

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a private matter"}], "stream": True}


async def test_a_request_leaves_one_line_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "xgen_ray.api")
    async with stack(keys=ApiKeys([("team", "sk-1")])) as running:
        headers = {"authorization": "Bearer sk-1", "x-request-id": "r-7"}
        reply = await running.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        size = len(reply.content)
        running.engine.plays += [die] * 4
        await running.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        await running.client.get("/v1/models", headers={"authorization": "Bearer sk-wrong"})
        await running.client.get("/health")
        port = f":{running.engine.port}"
    records = [record for record in caplog.records if record.name.startswith("xgen_ray.api")]
    fields = [vars(record)["fields"] for record in records]
    lines = [f"{record.getMessage()} {vars(record)['fields']}" for record in records]
    assert [(line["key"], line["status"], line["outcome"]) for line in fields] == [
        ("team", 200, "answered"),
        ("team", 502, "engine_unreachable"),
        (None, 401, "invalid_api_key"),
    ]
    first = fields[0]
    assert (first["request_id"], first["model"], first["replica"]) == ("r-7", "m", "r1")
    assert (first["path"], first["bytes"]) == ("/v1/chat/completions", size)
    for secret in ("sk-1", "sk-wrong", ENGINE_KEY, port, "a private matter"):
        assert secret not in "".join(lines)


@pytest.mark.parametrize("answers", [True, False])
async def test_an_unfit_id_is_found_again_where_the_server_answers_with_it(
    caplog: pytest.LogCaptureFixture, answers: bool
) -> None:
    caplog.set_level(logging.INFO, "xgen_ray.api")
    gateway = Gateway(InMemoryDispatcher(), ApiKeys(), answers_request_id=answers)
    async with serving(gateway) as url, httpx.AsyncClient(base_url=url, verify=NO_TLS) as client:
        for sent in ("no good " + "x" * 200, "r-9"):
            await client.get("/v1/models", headers={"x-request-id": sent})
    records = [record for record in caplog.records if record.name.startswith("xgen_ray.api")]
    unfit, fit = (vars(record)["fields"] for record in records)
    assert unfit["request_id"].startswith("req_")
    assert unfit.get("answered_id") == (None if answers else "no good " + "x" * 120)
    assert fit["request_id"] == "r-9"
    assert "answered_id" not in fit


class FaultyDispatcher(InMemoryDispatcher):
    def served(self) -> tuple[ServedModel, ...]:
        raise RuntimeError("a fault that nobody foresaw")


async def test_an_unforeseen_fault_is_logged_but_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with stack() as running, serving(Gateway(FaultyDispatcher(models=[served("m")]), ApiKeys())) as url:
        reply = await running.client.get(f"{url}/v1/models", headers={"x-request-id": "r-8"})
    assert reply.status_code == 500
    assert "nobody foresaw" not in reply.text
    assert "r-8" in reply.json()["error"]["message"]
    (record,) = (record for record in caplog.records if record.name == "xgen_ray.api.gateway")
    assert record.exc_info is not None
