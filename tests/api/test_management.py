"""The management API over real HTTP, mounted under /api as in production."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.api.support import NO_TLS, InMemoryControl, serving
from xgen_ray.api.guard import LocalGuard
from xgen_ray.api.keys import ApiKeys
from xgen_ray.api.management import BODY_LIMIT_BYTES, create_management_app
from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import EngineFailed
from xgen_ray.placement.types import Backend

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Managed:
    control: InMemoryControl
    client: httpx.AsyncClient

    async def post(self, path: str, **fields: object) -> httpx.Response:
        return await self.client.post(path, json=fields)


@asynccontextmanager
async def managing(keys: ApiKeys | None = None) -> AsyncIterator[Managed]:
    control = InMemoryControl()
    app = create_management_app(control, keys or ApiKeys(), follow_interval_s=0.02)
    mounted = LocalGuard(Starlette(routes=[Mount("/api", app)]))
    async with (
        serving(mounted) as url,
        httpx.AsyncClient(base_url=f"{url}/api/management", verify=NO_TLS) as client,
    ):
        yield Managed(control, client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_managed() -> AsyncIterator[Managed]:
    async with managing() as running:
        yield running


@pytest.fixture
def managed(module_managed: Managed) -> Managed:
    module_managed.control.renew()
    return module_managed


def error_of(reply: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = reply.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert "Traceback" not in reply.text
    return error


async def test_gpus_has_every_field_of_its_contract(managed: Managed) -> None:
    report = (await managed.client.get("/gpus")).json()
    assert report["success"] is True
    assert report["gpu_type"] == "rocm"
    assert report["recommended_backend"] == "llama-server"
    assert report["available_backends"] == ["llama-server-vulkan"]
    assert report["detection_method"] == "amdsmi"
    gpu = report["gpus"][0]
    assert {name: gpu[name] for name in ("id", "name", "type", "available", "memory_gb", "memory")} == {
        "id": 0,
        "name": "AMD Radeon RX 7900 XTX",
        "type": "rocm",
        "available": True,
        "memory_gb": 24.0,
        "memory": "24GB",
    }
    assert report["nodes"][0]["node"] == "node-1"
    assert report["nodes"][0]["gpus"] == report["gpus"]
    assert report["nodes"][0]["backends"][0]["reason"] == "found"


async def test_a_load_waits_until_the_model_is_ready(managed: Managed) -> None:
    loading = asyncio.create_task(managed.post("/load", model="/models/tiny.gguf", name="tiny"))
    async with asyncio.timeout(2):
        await managed.control.load_waits.wait()
    status = (await managed.client.get("/status")).json()
    assert [(model["name"], model["phase"]) for model in status["models"]] == [("tiny", "loading")]
    managed.control.finish_loading.set()
    reply = await loading
    assert reply.status_code == 200
    assert reply.json()["phase"] == "ready"
    assert reply.json()["endpoint"] == "http://127.0.0.1:8000/v1"


async def test_a_load_need_not_be_waited_for(managed: Managed) -> None:
    reply = await managed.client.post("/load?wait=false", json={"model": "hf:org/name"})
    assert (reply.status_code, reply.json()["phase"]) == (202, "loading")


async def test_a_client_that_leaves_ends_the_waiting_but_not_the_load(managed: Managed) -> None:
    loading = asyncio.create_task(managed.post("/load", model="tiny"))
    async with asyncio.timeout(2):
        await managed.control.load_waits.wait()
        loading.cancel()
        await managed.control.wait_abandoned.wait()
    assert "tiny" in managed.control.models


async def test_a_load_that_fails_carries_the_diagnosis(managed: Managed) -> None:
    refused = await managed.post("/load", model="too-big")
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "placement_refused"
    assert error_of(refused)["details"]["candidates"][0]["backend"] == "llama-server-vulkan"
    managed.control.finish_loading.set()
    managed.control.fail_with = EngineFailed("It ran out of memory.", "out_of_memory", ("last line",))
    failed = await managed.post("/load", model="tiny")
    assert failed.status_code == 502
    assert error_of(failed)["details"] == {"failure": "out_of_memory", "log_tail": ["last line"]}


async def test_a_plan_that_refuses_is_an_answer(managed: Managed) -> None:
    for model, accepted in (("tiny", True), ("too-big", False)):
        reply = await managed.post("/plan", model=model)
        assert reply.status_code == 200
        assert reply.json()["accepted"] is accepted
        assert reply.json()["candidates"][0]["reasons"] == ["weighed"]


async def test_unload(managed: Managed) -> None:
    await managed.client.post("/load?wait=false", json={"model": "org/tiny", "name": "org/tiny"})
    going = await managed.client.post("/unload?wait=false", json={"name": "org/tiny"})
    assert (going.status_code, going.json()["phase"]) == (202, "unloading")
    assert not managed.control.unload_waits.is_set()
    assert (await managed.post("/unload", name="org/tiny")).json()["phase"] == "unloading"
    assert managed.control.unload_waits.is_set()
    missing = await managed.post("/unload", name="nope")
    assert missing.status_code == 404
    assert "org/tiny" in error_of(missing)["message"]


async def test_backends(managed: Managed) -> None:
    report = (await managed.client.get("/backends")).json()
    assert report["nodes"]["node-1"][0]["backend"] == "llama-server-vulkan"


async def test_nodes_are_all_there_also_one_that_is_silent(managed: Managed) -> None:
    first, second = (await managed.client.get("/nodes")).json()["nodes"]
    assert (first["node"], first["schedulable"], first["models"]) == ("node-1", True, ["tiny"])
    assert first["leases"] == [
        {
            "lease": "l1",
            "model": "tiny",
            "backend": "llama-server-vulkan",
            "state": "claimed",
            "devices": {"ram": 2**20},
            "used": {},
            "threads": 2,
        }
    ]
    assert (second["node"], second["schedulable"], second["gpus"]) == ("node-2", False, [])
    assert second["reason"] == "its owner has not answered in 8 s"


async def test_a_scale_is_a_number_or_a_rule(managed: Managed) -> None:
    await managed.post("/load?wait=false", model="/m/tiny", name="tiny", pool="apu")
    assert managed.control.requests[-1].pool == "apu"
    scaled = await managed.post("/scale", name="tiny", replicas=3)
    assert (scaled.status_code, scaled.json()["wanted_replicas"]) == (200, 3)
    ruled = await managed.post("/scale", name="tiny", scaling={"min_replicas": 0, "ttl_s": 60})
    assert ruled.status_code == 200
    both = await managed.post("/scale", name="tiny", replicas=3, scaling={})
    assert both.status_code == 400
    assert "either replicas, a fixed number, or scaling" in error_of(both)["message"]
    assert (await managed.post("/scale", name="ghost", replicas=1)).status_code == 404


async def test_a_lift_forgives_one_backend_or_all(managed: Managed) -> None:
    managed.control.excluded["tiny"] = {Backend.LLAMA_SERVER_ROCM, Backend.VLLM_ROCM, Backend.VLLM_CPU}
    lifted = await managed.post("/lift", model="tiny", backend="vllm-rocm")
    assert (lifted.status_code, lifted.content) == (204, b"")
    assert managed.control.excluded["tiny"] == {Backend.LLAMA_SERVER_ROCM, Backend.VLLM_CPU}
    again = await managed.post("/lift", model="tiny", backend="vllm-rocm")
    assert (again.status_code, error_of(again)["code"]) == (404, "model_not_found")
    assert (await managed.post("/lift", model="tiny")).status_code == 204
    assert managed.control.excluded["tiny"] == set()
    nothing = await managed.post("/lift", model="tiny")
    assert nothing.status_code == 404
    assert "nothing is excluded for 'tiny'" in error_of(nothing)["message"]


async def test_a_node_is_drained_and_put_back(managed: Managed) -> None:
    drained = await managed.post("/drain", node="node-1")
    assert drained.status_code == 200
    assert drained.json() == {"node": "node-1", "drained_since": 7.0, "models": ["tiny"]}
    assert (await managed.post("/drain", node="node-1", lift=True)).json()["drained_since"] is None
    nobody = await managed.post("/drain", node="node-9")
    assert (nobody.status_code, error_of(nobody)["param"]) == (400, "node")


async def test_a_load_carries_where_it_may_go(managed: Managed) -> None:
    asked = {"model": "tiny", "nodes": ["node-1", "n2"], "evict": "idle", "options": {"spread": True}}
    assert (await managed.client.post("/load?wait=false", json=asked)).status_code == 202
    (request,) = managed.control.requests
    assert (request.nodes, request.evict, request.options.spread) == (("node-1", "n2"), "idle", True)


async def test_logs_are_read_in_pages(managed: Managed) -> None:
    await managed.client.post("/load?wait=false", json={"model": "tiny"})
    managed.control.lines["tiny"] = [f"line {number}" for number in range(5)]
    first = (await managed.client.get("/logs", params={"model": "tiny", "limit": 3})).json()
    assert first == {
        "model": "tiny",
        "replica_id": None,
        "lines": ["line 0", "line 1", "line 2"],
        "next": 3,
    }
    rest = await managed.client.get("/logs", params={"model": "tiny", "after": 3, "replica": "r1"})
    assert (rest.json()["lines"], rest.json()["replica_id"]) == (["line 3", "line 4"], "r1")
    assert (await managed.client.get("/logs", params={"model": "nope"})).status_code == 404


async def test_logs_can_be_followed_until_the_model_is_gone(managed: Managed) -> None:
    await managed.client.post("/load?wait=false", json={"model": "tiny"})
    lines = managed.control.lines["tiny"] = ["one", "two", "three"]
    asked = {"model": "tiny", "limit": "2", "follow": "true"}
    async with asyncio.timeout(5), managed.client.stream("GET", "/logs", params=asked) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = reply.aiter_lines()
        seen: list[str] = []
        while len(seen) < 4:
            line = await anext(events)
            if line.startswith("data: "):
                seen += json.loads(line.removeprefix("data: "))["lines"]
                if len(seen) == 3:
                    lines.append("four")
        assert seen == ["one", "two", "three", "four"]
        managed.control.models.clear()
        rest = [line async for line in events if line]
    assert rest[0] == "event: error"
    assert json.loads(rest[1].removeprefix("data: "))["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("count", [1, 5], ids=["fewer lines than before", "more lines than before"])
async def test_an_engine_that_was_started_again_is_followed_from_its_first_line(
    managed: Managed, count: int
) -> None:
    await managed.client.post("/load?wait=false", json={"model": "tiny"})
    control = managed.control
    control.engines["tiny"], control.lines["tiny"] = "r1", ["one", "two", "three"]
    asked = {"model": "tiny", "follow": "true"}
    async with asyncio.timeout(5), managed.client.stream("GET", "/logs", params=asked) as reply:
        events = reply.aiter_lines()
        seen = await lines_of(events, 3)
        control.engines["tiny"], control.lines["tiny"] = "r2", [f"again {n}" for n in range(count)]
        seen += await lines_of(events, count)
        control.lines["tiny"].append("the last")
        seen += await lines_of(events, 1)
    first = [("r1", "one"), ("r1", "two"), ("r1", "three")]
    assert seen == [*first, *(("r2", f"again {n}") for n in range(count)), ("r2", "the last")]


async def test_a_place_in_the_log_of_an_engine_that_is_gone_is_the_start_of_another(managed: Managed) -> None:
    await managed.client.post("/load?wait=false", json={"model": "tiny"})
    managed.control.engines["tiny"], managed.control.lines["tiny"] = "r2", ["one", "two"]
    asked = {"model": "tiny", "after": "1"}
    for of, lines in (("r1", ["one", "two"]), ("r2", ["two"])):
        page = (await managed.client.get("/logs", params={**asked, "of": of})).json()
        assert (page["replica_id"], page["lines"]) == ("r2", lines)


async def lines_of(events: AsyncIterator[str], count: int) -> list[tuple[str, str]]:
    """The next lines that are told, so many or some more, each with its replica."""
    seen: list[tuple[str, str]] = []
    while len(seen) < count:
        line = await anext(events)
        if line.startswith("data: "):
            page = json.loads(line.removeprefix("data: "))
            seen += [(page["replica_id"], text) for text in page["lines"]]
    return seen


async def asked_again(control: InMemoryControl) -> bool:
    control.asked_for_logs.clear()
    try:
        async with asyncio.timeout(0.2):
            return await control.asked_for_logs.wait()
    except TimeoutError:
        return False


async def test_following_stops_when_the_client_leaves(managed: Managed) -> None:
    await managed.client.post("/load?wait=false", json={"model": "tiny"})
    asked = {"model": "tiny", "follow": "true"}
    async with asyncio.timeout(5), managed.client.stream("GET", "/logs", params=asked):
        managed.control.asked_for_logs.clear()
        await managed.control.asked_for_logs.wait()
    async with asyncio.timeout(2):
        while await asked_again(managed.control):
            pass


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/load", {}, "model", "Field required"),
        ("/load", {"model": ""}, "model", "at least 1 character"),
        ("/load", {"model": "a", "options": {"context": 0}}, "options.context", "(got 0)"),
        ("/load", {"model": "a", "options": {"backend": "cuda"}}, "options.backend", "vllm-cuda"),
        ("/load", {"model": "a", "nmae": "b"}, "nmae", "Extra inputs"),
        ("/load", {"model": "a", "name": "../x"}, "name", "pattern"),
        ("/load?wait=perhaps", {"model": "a"}, "wait", "boolean"),
        ("/plan", {"model": "a", "replicas": 0, "name": "-"}, "name", "replicas"),
        ("/unload", {"name": 5}, "name", "string"),
        ("/load", {"model": "a", "nodes": []}, "nodes", "at least 1 item"),
        ("/load", {"model": "a", "nodes": "node-1"}, "nodes", "tuple"),
        ("/load", {"model": "a", "evict": "all"}, "evict", "'never' or 'idle'"),
        ("/plan", {"model": "a", "options": {"spread": "wide"}}, "options.spread", "boolean"),
        ("/lift", {}, "model", "Field required"),
        ("/load", {"model": "a", "name": "a@b"}, "name", "pattern"),
        ("/load", {"model": "a", "pool": "A b"}, "pool", "pattern"),
        ("/load", {"model": "a", "scaling": {"max_replicas": 0}}, "scaling.max_replicas", "greater than"),
        ("/drain", {}, "node", "Field required"),
        ("/drain", {"node": "a", "lift": "perhaps"}, "lift", "boolean"),
        ("/lift", {"model": ""}, "model", "at least 1 character"),
        ("/lift", {"model": "a" * 1025}, "model", "at most 1024 characters"),
        ("/lift", {"model": "a", "backend": "cuda"}, "backend", "vllm-cuda"),
        ("/lift", {"model": "a", "node": "b"}, "node", "Extra inputs"),
        ("/lift", ["a"], None, "The body"),
        ("/unload", [], None, "The body"),
    ],
)
async def test_a_bad_field_is_named(
    managed: Managed, path: str, body: object, param: str | None, says: str
) -> None:
    reply = await managed.client.post(path, json=body)
    error = error_of(reply)
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert says in error["message"]


async def test_bodies_that_are_no_json_or_too_large(managed: Managed) -> None:
    headers = {"content-type": "application/json"}
    for body, status in ((b"{", 400), (b"", 400), (b"\xff", 400), (b" " * (BODY_LIMIT_BYTES + 1), 413)):
        reply = await managed.client.post("/load", content=body, headers=headers)
        assert reply.status_code == status
        error_of(reply)
    form = await managed.client.post("/load", data={"model": "a"})
    assert form.status_code == 415
    error_of(form)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/load", 405),
        ("GET", "/lift", 405),
        ("GET", "/docs", 404),
        ("GET", "/logs?limit=0", 400),
    ],
)
async def test_other_mistakes_have_the_same_shape(
    managed: Managed, method: str, path: str, status: int
) -> None:
    reply = await managed.client.request(method, path)
    assert reply.status_code == status
    error_of(reply)


async def test_an_unforeseen_error_tells_nothing_of_the_inside(managed: Managed) -> None:
    reply = await managed.post("/unload", name="broken")
    assert reply.status_code == 500
    assert error_of(reply)["code"] == "internal_error"
    assert "nobody foresaw" not in reply.text


async def test_a_restart_loads_what_was_loaded(managed: Managed) -> None:
    await managed.post("/load?wait=false", model="/models/tiny.gguf", name="tiny")
    reply = await managed.post("/restart", name="tiny")
    assert (reply.status_code, reply.json()["phase"]) == (200, "loading")
    assert managed.control.requests[-1].model == "/models/tiny.gguf"
    assert (await managed.post("/restart", name="nobody")).status_code == 404


async def test_keys_are_needed_when_there_are_any() -> None:
    async with managing(ApiKeys([("ops", "sk-ops")])) as running:
        running.control.excluded["tiny"] = {Backend.VLLM_CPU}
        for path in ("/gpus", "/nodes", "/status", "/openapi.json", "/nowhere"):
            reply = await running.client.get(path)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
        assert (await running.post("/load", model="a")).status_code == 401
        assert (await running.post("/lift", model="tiny")).status_code == 401
        assert running.control.excluded["tiny"] == {Backend.VLLM_CPU}
        headers = {"authorization": "Bearer sk-ops"}
        for path in ("/status", "/nodes"):
            assert (await running.client.get(path, headers=headers)).status_code == 200
        lifted = await running.client.post("/lift", json={"model": "tiny"}, headers=headers)
        assert lifted.status_code == 204


async def test_a_key_for_using_models_looks_on_and_changes_nothing() -> None:
    keys = ApiKeys([KeyEntry("ops", "sk-ops"), KeyEntry("app", "sk-app", Role.INFER)])
    async with managing(keys) as running:
        app = {"authorization": "Bearer sk-app"}
        for path in ("/status", "/nodes", "/gpus", "/events", "/options", "/local-models"):
            assert (await running.client.get(path, headers=app)).status_code == 200
        plan = await running.client.post("/plan", json={"model": "tiny"}, headers=app)
        assert plan.status_code == 200
        orders = {
            "/load": {"model": "tiny"},
            "/unload": {"name": "tiny"},
            "/restart": {"name": "tiny"},
            "/scale": {"name": "tiny", "replicas": 2},
            "/lift": {"model": "tiny"},
        }
        for path, body in orders.items():
            refused = await running.client.post(path, json=body, headers=app)
            assert refused.status_code == 403
            assert error_of(refused)["code"] == "forbidden"
            assert "'app'" in error_of(refused)["message"]
        assert running.control.models == {}


async def test_the_session_says_who_is_asking() -> None:
    keys = ApiKeys([KeyEntry("ops", "sk-ops"), KeyEntry("app", "sk-app", Role.INFER)])
    async with managing(keys) as running:
        for name, role in (("ops", "manage"), ("app", "infer")):
            reply = await running.client.get("/session", headers={"x-api-key": f"sk-{name}"})
            assert (reply.json()["key"], reply.json()["role"]) == (name, role)
            assert "sk-" not in reply.text


async def test_without_keys_everybody_manages(managed: Managed) -> None:
    session = (await managed.client.get("/session")).json()
    assert (session["key"], session["role"]) == (None, "manage")


async def test_the_options_are_data_for_a_form(managed: Managed) -> None:
    report = (await managed.client.get("/options")).json()
    fields = {option["name"]: option for option in report["options"]}
    assert fields["context"]["type"] == "integer"
    assert fields["gpu_memory_utilization"]["maximum"] == 1
    vulkan, vllm = (
        next(row for row in report["backends"] if row["backend"] == name)
        for name in ("llama-server-vulkan", "vllm-cuda")
    )
    assert (vulkan["engine"], vulkan["device"], vulkan["formats"]) == ("llama-server", "vulkan", ["gguf"])
    assert "split_mode" in vulkan["options"]
    assert "tensor_parallel_size" not in vulkan["options"]
    assert {"tensor_parallel_size", "gpu_memory_utilization"} <= set(vllm["options"])
    assert "split_mode" not in vllm["options"]
    for row in report["backends"]:
        assert set(row["options"]) <= {*fields, "backend", "gpus"}


async def test_a_foreign_page_cannot_load_a_model(managed: Managed) -> None:
    headers = {"origin": "https://evil.example.com"}
    reply = await managed.client.post("/load?wait=false", json={"model": "a"}, headers=headers)
    assert reply.status_code == 403
    assert managed.control.models == {}


async def test_the_description_covers_every_route(managed: Managed) -> None:
    described = (await managed.client.get("/openapi.json")).json()
    routes = {(method, path) for path, methods in described["paths"].items() for method in methods}
    assert routes == {
        ("get", "/management/gpus"),
        ("get", "/management/backends"),
        ("get", "/management/nodes"),
        ("get", "/management/session"),
        ("get", "/management/options"),
        ("get", "/management/local-models"),
        ("get", "/management/events"),
        ("get", "/management/memory"),
        ("get", "/management/stream"),
        ("post", "/management/drain"),
        ("post", "/management/lift"),
        ("post", "/management/scale"),
        ("get", "/management/status"),
        ("get", "/management/logs"),
        ("get", "/management/figures"),
        ("get", "/management/metrics/targets"),
        ("post", "/management/load"),
        ("post", "/management/unload"),
        ("post", "/management/restart"),
        ("post", "/management/plan"),
    }
    for methods in described["paths"].values():
        for operation in methods.values():
            assert operation["summary"]


async def test_figures_are_those_since(managed: Managed) -> None:
    everything = (await managed.client.get("figures")).json()
    assert [point["at"] for point in everything["fleet"]] == [5.0, 10.0]
    assert everything["fleet"][0]["ended"] == {"ok": 1}
    newer = (await managed.client.get("figures", params={"since": 5})).json()
    assert [point["at"] for point in newer["fleet"]] == [10.0]
    assert (await managed.client.get("figures", params={"since": "soon"})).status_code == 400
