"""Five unlike machines as one fleet: every node tags itself, every model lands where it fits, and stays.

What is real and what stands in is told in this folder's README. The tests share one fleet and one small
model on each of its nodes; whatever else a test loads, it unloads.
"""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import chromium, tab
from tests.clients import Streams, Traffic
from tests.cluster_configs.monitoring import SERIES, looked_at, names_in, needs_prometheus
from tests.e2e.fleet import HEAD, Card, Fleet, Machine, at_once
from tests.e2e.prometheus import SOON_S, scraping
from tests.stack import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.native, pytest.mark.engine, pytest.mark.timeout(600)]

# On each of the first two, strangers have left room for one small model and not for two.
RTX_3060S = tuple(
    Card(
        "nvidia",
        f"GPU-3060000{number}-0000-4000-8000-000000000000",
        "name=NVIDIA GeForce RTX 3060,memory_mb=12288,used_mb=10788,cc=8.6,"
        f"bus=00000000:0{number + 1}:00.0,uuid=GPU-3060000{number}-0000-4000-8000-000000000000",
        "NVIDIA GeForce RTX 3060",
        12288,
        10788,
    )
    for number in range(2)
)
STRIX_HALO = Card(
    "amd",
    "00ff1586-0000-1000-8000-0000000a0000",
    "name=AMD Radeon 8060S Graphics,gfx=1151,vram_mb=1024,gtt_mb=8192,bdf=0000:c1:00.0",
    "AMD Radeon 8060S Graphics (RADV GFX1151)",
    9216,
)
MI300X = Card(
    "amd",
    "GPU-00000000000a0000",
    "name=AMD Instinct MI300X,gfx=942,vram_mb=196592,bdf=0000:05:00.0",
    "AMD Instinct MI300X",
    196592,
)
RTX_4090 = Card(
    "nvidia",
    "GPU-40900000-0000-4000-8000-000000000000",
    "name=NVIDIA GeForce RTX 4090,memory_mb=24564,used_mb=23464,cc=8.9,bus=00000000:01:00.0,"
    "uuid=GPU-40900000-0000-4000-8000-000000000000",
    "NVIDIA GeForce RTX 4090",
    24564,
    23464,
)
RAPHAEL = Card(
    "amd",
    "00ff1586-0000-1000-8000-0000000a0000",
    "name=AMD Radeon Graphics,gfx=1036,vram_mb=512,gtt_mb=4096,bdf=0000:0d:00.0",
    "AMD Radeon Graphics (RADV RAPHAEL_MENDOCINO)",
    4608,
)

CUDA, ROCM, VULKAN = "llama-server-cuda", "llama-server-rocm", "llama-server-vulkan"
CPU = "llama-server-cpu"
HEAD_MACHINE = Machine(HEAD, "127.0.0.11")
MACHINES = (
    Machine("two-cards", "127.0.0.12", RTX_3060S, {CUDA: ("CUDA", 900, RTX_3060S)}),
    Machine("apu", "127.0.0.13", (STRIX_HALO,), {VULKAN: ("Vulkan", 400, (STRIX_HALO,))}),
    Machine("instinct", "127.0.0.14", (MI300X,), {ROCM: ("ROCm", 650, (MI300X,))}),
    Machine(
        "mixed",
        "127.0.0.15",
        (RTX_4090, RAPHAEL),
        {VULKAN: ("Vulkan", 400, (RAPHAEL, RTX_4090)), CUDA: ("CUDA", 900, (RTX_4090,))},
    ),
)
PLAIN_IP = "127.0.0.16"
NODES = (HEAD, *(machine.name for machine in MACHINES))
BACKENDS = {HEAD: CPU, "two-cards": CUDA, "apu": VULKAN, "instinct": ROCM, "mixed": VULKAN}
MOVED_S = 120.0
# Between the requests of one client: two cores are shared with all that a restart costs.
PAUSE_S = 0.25


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("f"), HEAD_MACHINE, MACHINES) as running:
        yield running


@pytest.fixture(scope="module")
def settled(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """One small model on each node, called ``on-NODE``; all five loads are asked for at the same moment."""
    loads = [lambda node=node: fleet.small(f"on-{node}", on=[node]) for node in NODES]
    answers = at_once(*loads)
    for answer in answers:
        assert answer.status_code == 200, answer.text
    return dict(zip(NODES, [answer.json() for answer in answers], strict=True))


@contextlib.contextmanager
def loaded(fleet: Fleet, name: str, **more: Any) -> Iterator[dict[str, Any]]:
    answer = fleet.small(name, **more)
    assert answer.status_code == 200, answer.text
    try:
        yield answer.json()
    finally:
        assert fleet.unload(name).status_code == 200


@contextlib.contextmanager
def raced(fleet: Fleet, names: Sequence[str], **more: Any) -> Iterator[list[httpx.Response]]:
    """The answers to loads that are asked for at the same moment."""
    answers = at_once(*(lambda name=name: fleet.small(name, **more) for name in names))
    try:
        yield answers
    finally:
        for name, answer in zip(names, answers, strict=True):
            if answer.status_code == 200:
                assert fleet.unload(name).status_code == 200


def engines(status: dict[str, Any]) -> dict[int, str]:
    """The processes of a model's engines, and the node that each is said to be on."""
    return {replica["pid"]: replica["node"] for replica in status["replicas"]}


def engine(status: dict[str, Any]) -> int:
    (pid,) = engines(status)
    return pid


def state_of(fleet: Fleet, name: str) -> dict[str, Any]:
    status = fleet.status(name)
    assert status is not None, f"{name} is not known"
    return status


def waits_for(fleet: Fleet, name: str, node: str) -> bool:
    """While a place is looked for once more, that is the reason given."""
    status = state_of(fleet, name)
    assert status["phase"] in ("failed", "recovering", "resolving"), status
    return f"there is no node {node}" in status["reason"]


def gpu_leases(node: dict[str, Any]) -> dict[str, list[str]]:
    """The models that have leases on each of a node's GPUs."""
    found: dict[str, list[str]] = {gpu["uuid"]: [] for gpu in node["gpus"]}
    for lease in node["leases"]:
        for device in lease["devices"]:
            if device != "ram":
                found[device].append(lease["model"])
    return found


def test_every_node_is_known_by_what_it_has(fleet: Fleet) -> None:
    seen = fleet.seen()
    assert set(seen) == set(NODES)
    assert {name: [gpu["name"] for gpu in node["gpus"]] for name, node in seen.items()} == {
        HEAD: [],
        "two-cards": ["NVIDIA GeForce RTX 3060"] * 2,
        "apu": ["AMD Radeon 8060S Graphics"],
        "instinct": ["AMD Instinct MI300X"],
        "mixed": ["AMD Radeon Graphics", "NVIDIA GeForce RTX 4090"],
    }
    for name, node in seen.items():
        assert node["tagged"]
        assert node["reason"] == ""
        assert node["labels"]["xgen-ray/name"] == name
        assert node["labels"].items() >= fleet.nodes[name].described["labels"].items()
        assert BACKENDS[name] in node["available_backends"]
        assert node["labels"][f"xgen-ray/backend-{BACKENDS[name]}"] == "true"
    resources = {name: node.described["resources"] for name, node in fleet.nodes.items()}
    assert resources == {
        HEAD: {"cpu_node": 1},
        "two-cards": {"nvidia": 2, "sm_86": 2},
        "apu": {"amd_rdna": 1, "gfx1151": 1},
        "instinct": {"amd_cdna": 1, "gfx942": 1},
        "mixed": {"nvidia": 1, "sm_89": 1, "amd_rdna": 1, "gfx1036": 1},
    }
    types = {name: node["labels"]["xgen-ray/gpu-type"] for name, node in seen.items()}
    assert types == {
        HEAD: "cpu",
        "two-cards": "nvidia",
        "apu": "amd_rdna",
        "instinct": "amd_cdna",
        "mixed": "nvidia",
    }
    (instinct,) = seen["instinct"]["gpus"]
    assert instinct["memory_free_bytes"] == 196592 * 2**20
    answer = fleet.management("GET", "gpus").json()
    assert len(answer["gpus"]) == 6
    assert (answer["gpu_type"], answer["success"]) == ("cuda", True)


@pytest.mark.browser
def test_the_page_says_at_a_glance_what_every_machine_is(fleet: Fleet) -> None:
    """Above all: NVIDIA cards without Vulkan are no "CPU only"."""
    badges = {
        HEAD: ["CPU only"],
        "two-cards": ["CUDA GPU"],
        "apu": ["ROCm GPU"],
        "instinct": ["ROCm GPU"],
        "mixed": ["CUDA GPU", "ROCm GPU"],
    }
    with chromium() as browser, tab(browser, f"{fleet.url}/api/#/environment") as page:
        for name, told in badges.items():
            card = page.get_by_role("article", name=name, exact=True)
            expect(card.locator(".badge")).to_have_text(told)
        two = page.get_by_role("article", name="two-cards", exact=True)
        expect(two).to_contain_text("[1] NVIDIA GeForce RTX 3060 (cuda, 12GB)")
        expect(two.get_by_role("meter").first).to_have_attribute("aria-valuetext", "10.5 GB / 12 GB")
        two.get_by_text("not available, and why").click()
        expect(two.locator(".reasons")).to_contain_text("llama-server-vulkan")


def test_a_model_on_each_node_answers_from_there(fleet: Fleet, settled: dict[str, dict[str, Any]]) -> None:
    for name, status in settled.items():
        assert (status["phase"], status["backend"]) == ("ready", BACKENDS[name]), status
        pid = engine(status)
        assert engines(status) == {pid: name}
        # Only a process of that node's has its home.
        assert psutil.Process(pid).environ()["HOME"] == str(fleet.nodes[name].home)
        answer = fleet.chat(f"on-{name}", max_tokens=4)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.json()["usage"]["completion_tokens"] >= 1
    seen = fleet.seen()
    assert {name: node["models"] for name, node in seen.items()} == {name: [f"on-{name}"] for name in NODES}
    assert {name: len(node["leases"]) for name, node in seen.items()} == dict.fromkeys(NODES, 1)


def test_an_engine_sees_what_its_lease_gives_it_and_no_more(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    launches = {
        name: fleet.nodes[name].launch(engine(status)) for name, status in settled.items() if name != HEAD
    }
    leases = {name: gpu_leases(node) for name, node in fleet.seen().items()}
    for name, launch in launches.items():
        model = f"on-{name}"
        assert launch["uuids"] == [uuid for uuid, models in leases[name].items() if model in models]
        assert launch["argv"][launch["argv"].index("--device") + 1] == ",".join(launch["devices"])
        assert launch["argv"][launch["argv"].index("--n-gpu-layers") + 1] != "0"
        assert "ROCR_VISIBLE_DEVICES" not in launch["env"]
        assert launch["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        if BACKENDS[name] != VULKAN:
            # Renumbered from 0: one card is all that there is.
            assert len(launch["visible"]) == 1
            assert launch["env"]["GGML_VK_VISIBLE_DEVICES"] == ""
    first, apu, instinct, mixed = (launches[machine.name] for machine in MACHINES)
    assert first["env"]["CUDA_VISIBLE_DEVICES"] == first["uuids"][0]
    assert (first["env"]["HIP_VISIBLE_DEVICES"], first["devices"]) == ("-1", ["CUDA0"])
    assert (instinct["env"]["HIP_VISIBLE_DEVICES"], instinct["devices"]) == ("0", ["ROCm0"])
    assert "CUDA_VISIBLE_DEVICES" not in instinct["env"]
    for launch in (apu, mixed):
        # Asked for its device by the position that the drivers have it at: it is the only one there is.
        assert len(launch["visible"]) == 1
        assert (launch["env"]["CUDA_VISIBLE_DEVICES"], launch["env"]["HIP_VISIBLE_DEVICES"]) == ("-1", "-1")
    assert (apu["env"]["GGML_VK_VISIBLE_DEVICES"], apu["devices"]) == ("0", ["Vulkan0"])
    # The card and not the processor's GPU, which comes first in the engine's list.
    assert (mixed["env"]["GGML_VK_VISIBLE_DEVICES"], mixed["devices"]) == ("1", ["Vulkan0"])
    assert mixed["uuids"] == [RTX_4090.uuid]
    on_cpu = psutil.Process(engine(settled[HEAD])).environ()
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_cpu["HIP_VISIBLE_DEVICES"]) == ("-1", "-1")
    assert on_cpu["GGML_VK_VISIBLE_DEVICES"] == ""


def test_either_vendor_of_one_machine_can_be_asked_for(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    with loaded(fleet, "radeon", on=["mixed"], options={"gpus": [RAPHAEL.uuid]}) as status:
        launch = fleet.nodes["mixed"].launch(engine(status))
        assert (launch["uuids"], launch["devices"]) == ([RAPHAEL.uuid], ["Vulkan0"])
        assert fleet.chat("radeon").status_code == 200
    # What is left of the card holds no second engine of CUDA's, and the refusal has the numbers.
    answer = fleet.small("geforce", on=["mixed"], options={"backend": CUDA})
    assert answer.status_code == 409, answer.text
    assert "NVIDIA GeForce RTX 4090 has 700 MiB free" in answer.json()["error"]["message"]
    (node,) = [one for one in fleet.plan(on=["mixed"])["nodes"] if one["node"] == "mixed"]
    (cuda,) = [one for one in node["candidates"] if one["backend"] == CUDA]
    reasons = {gpu["name"]: gpu["reason"] for gpu in cuda["gpus"]}
    assert reasons["AMD Radeon Graphics"] == "llama-server-cuda is not for amd_rdna GPUs"
    assert reasons["NVIDIA GeForce RTX 4090"].startswith("has 700 MiB free, needs ")


def test_both_cards_of_a_node_are_used(fleet: Fleet, settled: dict[str, dict[str, Any]]) -> None:
    """Two models that do not fit on one card together, and a third that fits nowhere there."""
    with loaded(fleet, "second", on=["two-cards"]) as status:
        launches = [fleet.nodes["two-cards"].launch(engine(one)) for one in (settled["two-cards"], status)]
        assert [len(launch["uuids"]) for launch in launches] == [1, 1]
        assert {uuid for launch in launches for uuid in launch["uuids"]} == {one.uuid for one in RTX_3060S}
        node = fleet.seen()["two-cards"]
        assert {tuple(models) for models in gpu_leases(node).values()} == {("on-two-cards",), ("second",)}
        # Strangers and our engine, as the driver said within the last second.
        used = (10788 + 900) * 2**20
        wait_until(
            lambda: all(gpu["memory_used_bytes"] == used for gpu in fleet.seen()["two-cards"]["gpus"]),
            SOON_S,
            "both cards' memory in use",
        )
        third = fleet.small("third", on=["two-cards"], options={"backend": CUDA})
        assert third.status_code == 409
        assert "NVIDIA GeForce RTX 3060 has 600 MiB free" in third.json()["error"]["message"]
        assert fleet.chat("second").status_code == 200


def test_two_loads_at_once_never_get_the_same_memory(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    """One card has room for one of them. Where nothing else may be used, the other is refused."""
    with raced(fleet, ["left", "right"], on=["two-cards"], options={"backend": CUDA}) as answers:
        assert sorted(answer.status_code for answer in answers) == [200, 409], [one.text for one in answers]
        refused = next(answer for answer in answers if answer.status_code == 409)
        said = refused.json()["error"]["message"]
        assert re.search(r"needs \d+ MiB .*; NVIDIA GeForce RTX 3060 has \d+ MiB free", said), said
        assert len(fleet.seen()["two-cards"]["leases"]) == 2
    # With another node to go to, it goes there.
    either = ["two-cards", "instinct"]
    with raced(fleet, ["left", "right"], on=either) as answers:
        assert [answer.status_code for answer in answers] == [200, 200], [one.text for one in answers]
        places = {node for answer in answers for node in engines(answer.json()).values()}
        assert places == set(either)
        for name in ("left", "right"):
            assert fleet.chat(name).status_code == 200


def test_a_model_for_the_cpu_goes_to_the_node_without_gpus(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    with loaded(fleet, "cpu-only", options={"gpus": []}) as status:
        assert (status["backend"], set(engines(status).values())) == (CPU, {HEAD})
        assert fleet.chat("cpu-only").status_code == 200


def ready(fleet: Fleet, name: str) -> int:
    return sum(one["state"] == "ready" for one in state_of(fleet, name)["replicas"])


def test_replicas_land_where_the_planner_says(fleet: Fleet, settled: dict[str, dict[str, Any]]) -> None:
    wish: dict[str, Any] = {"replicas": 3, "options": {"spread": True}}
    report = fleet.plan(**wish)
    assert report["accepted"], report["message"]
    planned = sorted((place["node"], place["backend"]) for place in report["assignments"])
    # The card beside the Radeon takes one more, the second RTX another, and the third goes to the Instinct.
    assert planned == [("instinct", ROCM), ("mixed", VULKAN), ("two-cards", CUDA)]
    with loaded(fleet, "trio", **wish):
        wait_until(lambda: ready(fleet, "trio") == 3, MOVED_S, "three replicas")
        status = state_of(fleet, "trio")
        assert sorted((engine["node"], engine["backend"]) for engine in status["engines"]) == planned
        assert sorted(engines(status).values()) == [node for node, _ in planned]
        for pid, node in engines(status).items():
            assert psutil.Process(pid).environ()["HOME"] == str(fleet.nodes[node].home)
        with Traffic(fleet, ["trio"] * 3, pause_s=PAUSE_S) as traffic:
            wait_until(lambda: len(traffic.answers) >= 12, 60, "a dozen answers")
        assert traffic.failures() == []


@needs_prometheus()
def test_prometheus_has_every_node_and_every_card(
    fleet: Fleet, settled: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    with (
        loaded(fleet, "mortal", on=[HEAD]) as status,
        scraping(fleet.url, tmp_path, len(NODES)) as prometheus,
    ):
        psutil.Process(engine(status)).kill()
        # Twice, for there to be an increase of it.
        prometheus.wait_for('count_over_time(ray_xgen_failures_total{model="mortal",node="head"}[1m]) > 1')
        prometheus.wait_for(
            "count by (node) (ray_xgen_node_memory_bytes)",
            lambda seen: {one["metric"]["node"] for one in seen} == set(NODES),
        )
        cards = {(machine.name, card.vendor, card.uuid) for machine in MACHINES for card in machine.cards}
        prometheus.wait_for(
            "ray_xgen_gpu_memory_bytes",
            lambda seen: (
                {tuple(one["metric"][key] for key in ("node", "vendor", "gpu")) for one in seen} == cards
            ),
        )
        # What runs there, as the driver says.
        prometheus.wait_for(
            'ray_xgen_gpu_memory_used_bytes{node="instinct"}',
            lambda seen: [float(one["value"][1]) for one in seen] == [650 * 2**20],
        )
        told = {"ray_xgen_failures_total", *(name for name in SERIES if name.startswith("ray_xgen_gpu_"))}
        asked = {where: expression for where, expression in looked_at() if names_in(expression) & told}
        assert len(asked) > 5
        prometheus.wait_for_data(asked)
        wait_until(lambda: ready(fleet, "mortal") == 1, SOON_S, "the engine back")
        order = {"node": HEAD}
        assert fleet.management("POST", "drain", json=order).status_code == 200
        prometheus.wait_for('ray_xgen_node_drained{node="head"} == 1')
        assert fleet.management("POST", "drain", json={**order, "lift": True}).status_code == 200


def test_a_node_of_plain_ray_is_a_cpu_node_and_says_what_to_do(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    with fleet.plain_node(PLAIN_IP):
        began = time.monotonic()
        plain = wait_until(lambda: untagged(fleet), MOVED_S, "the plain node's owner to answer")
        assert (plain["gpus"], plain["gpu_type"]) == ([], "cpu")
        assert "xgen-ray/gpu-type" not in plain["labels"]
        assert "join with `xgen-ray node --address" in plain["reason"]
        print(f"its owner answers after {time.monotonic() - began:.0f} s")
        with loaded(fleet, "guest", on=[plain["node"]]) as status:
            assert (status["backend"], set(engines(status).values())) == (CPU, {plain["node"]})
            assert fleet.chat("guest").status_code == 200
    gone = time.monotonic()
    wait_until(lambda: set(fleet.seen()) == set(NODES), MOVED_S, "the plain node to be gone")
    print(f"its end is seen after {time.monotonic() - gone:.0f} s")


def untagged(fleet: Fleet) -> dict[str, Any] | None:
    return next((one for one in fleet.seen().values() if not one["tagged"] and one["schedulable"]), None)


def test_a_drained_node_goes_empty_and_no_stream_is_cut(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    """One model moves while it streams. The other is bound to the node: it stays and says why."""
    with loaded(fleet, "leaver", on=["apu", "instinct"], options={"slots": 2}) as status:
        (old,) = status["replicas"]
        bound, node = f"on-{old['node']}", old["node"]
        with Streams(fleet, "leaver", 2) as streams:
            wait_until(lambda: streams.of(old["replica_id"]), 60, "a stream of the first engine")
            answer = fleet.management("POST", "drain", json={"node": node})
            assert (answer.status_code, answer.json()["models"]) == (200, sorted(["leaver", bound]))
            wait_until(lambda: leased(fleet, node) == {bound}, MOVED_S, "the first engine to be gone")
            (new,) = state_of(fleet, "leaver")["replicas"]
            wait_until(lambda: streams.of(new["replica_id"]), 60, "a stream of the second engine")
        assert new["node"] in {"apu", "instinct"} - {node}
        assert {one.replica for one in streams.answers} == {old["replica_id"], new["replica_id"]}
        assert [one.last for one in streams.answers if not one.is_whole] == []
        last = max(one.ended for one in streams.of(old["replica_id"]))
        assert last > new["since"], "the first engine was still at work when the second one could take over"
        print(f"its last stream ended {last - new['since']:.1f} s after the second engine was ready")
        stays = state_of(fleet, bound)
        assert (stays["phase"], engine(stays)) == ("ready", engine(settled[node]))
        assert f"drained by an operator; `xgen-ray drain {node} --lift`" in stays["shortfall"]
        assert fleet.unload(bound).status_code == 200
        command = [sys.executable, "-m", "xgen_ray", "drain", node, "--json", "--timeout", "60"]
        done = subprocess.run(
            [*command, "--url", fleet.url], capture_output=True, text=True, timeout=90, check=False
        )
        assert (done.returncode, json.loads(done.stdout)["left"]) == (0, []), done.stderr
        assert leased(fleet, node) == set()
        assert not fleet.plan(on=[node])["accepted"]
        assert fleet.management("POST", "drain", json={"node": node, "lift": True}).status_code == 200
    again = fleet.small(bound, on=[node])
    assert again.status_code == 200, again.text


def leased(fleet: Fleet, node: str) -> set[str]:
    return {lease["model"] for lease in fleet.seen()[node]["leases"]}


def test_a_node_that_dies_under_load_loses_its_models_to_others(
    fleet: Fleet, settled: dict[str, dict[str, Any]]
) -> None:
    """One model may go elsewhere and does. The other is bound to the node and waits, with the reason."""
    with loaded(fleet, "roaming") as status:
        (victim,) = engines(status).values()
        assert victim != HEAD, "cards come before a CPU"
        bound, node = f"on-{victim}", fleet.nodes[victim]
        others = [f"on-{name}" for name in NODES if name != victim]
        names = [*others, bound, "roaming"]
        with Traffic(fleet, names, pause_s=PAUSE_S) as traffic:
            wait_until(lambda: all(traffic.served_since(0, name) for name in names), 60, "all to serve")
            killed = node.kill()
            wait_until(lambda: traffic.served_since(killed + 1, "roaming"), MOVED_S, "the model elsewhere")
            print(f"elsewhere after {time.monotonic() - killed:.0f} s")
            moved = state_of(fleet, "roaming")
            assert victim not in engines(moved).values()
            wait_until(lambda: waits_for(fleet, bound, victim), MOVED_S, "why the bound model waits")
            assert victim not in fleet.seen()
            for name in others:
                assert traffic.served_since(killed + 1, name)
                assert traffic.failures(name) == []
            node.start()
            joined = time.monotonic()
            wait_until(lambda: traffic.served_since(killed + 1, bound), MOVED_S, "the model back")
            print(f"back {time.monotonic() - joined:.0f} s after the node has joined")
        back = state_of(fleet, bound)
        assert (back["phase"], engines(back)) == ("ready", {engine(back): victim})
        assert len(node.launch(engine(back))["uuids"]) == 1
        for name in others:
            assert traffic.failures(name) == []
