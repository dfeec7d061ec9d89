"""Engines that die in every way there is, on one machine with a GPU: who takes over, what the user reads,
and what is left behind.

The order for GGUF is vulkan, rocm, cpu. ``ladder.py`` says what is real here and what stands in.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster_configs.monitoring import looked_at, names_in, needs_prometheus
from tests.e2e.ladder import CPU, ROCM, VULKAN, LadderMachine, engine_of
from tests.e2e.prometheus import scraping
from tests.stack import wait_until
from xgen_ray.process import free_port
from xgen_ray.settings import RouterSettings

pytestmark = [pytest.mark.cluster, pytest.mark.native, pytest.mark.timeout(900)]

# As the drivers and llama.cpp print them.
PAGE_FAULT = (
    "Memory access fault by GPU node-1 (Agent handle: 0x5581c0) on address 0x7f3c20000000. "
    "Reason: Page not present or supervisor privilege."
)
NO_MEMORY = "ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory"
DAMAGED = (
    "llama_model_load: error loading model: tensor 'blk.3.ffn_down.weight' data is not within the file "
    "bounds, model is corrupted or incomplete"
)
WELL: list[str] = []
FAULTS = ["--last-words", PAGE_FAULT, "--abort", "--die-of-request"]
STARVES = ["--print", NO_MEMORY, "--exit-code", "1"]
CANNOT_COMPUTE = ["--fail-chat", "500"]
SLOW_S = 8
# What each model's engines do, and what else its load asks for. All are loaded at the same time.
SCRIPTS: dict[str, dict[str, list[list[str]]]] = {
    "faults-once": {VULKAN: [FAULTS, WELL]},
    "faults": {VULKAN: [FAULTS]},
    "starves": {VULKAN: [STARVES, WELL]},
    "starves-as-asked": {VULKAN: [STARVES]},
    "damaged": {VULKAN: [["--print", DAMAGED, "--exit-code", "1"]]},
    "ends": {VULKAN: [["--exit-code", "0"]]},
    "crashes": {VULKAN: [["--segv"]], ROCM: [["--segv"]]},
    "pretends": {VULKAN: [CANNOT_COMPUTE], ROCM: [CANNOT_COMPUTE]},
    "pinned": {ROCM: [CANNOT_COMPUTE]},
    "slow": {VULKAN: [["--ready-after", str(SLOW_S)]]},
}
REQUESTS: dict[str, dict[str, Any]] = {
    "starves-as-asked": {"options": {"context": 4096}},
    "pinned": {"options": {"backend": "llama-server-rocm"}},
}
BYSTANDER = "bystander"
SOON_S = 120.0
# How long a router lets a request wait for an engine.
ROUTER_WAIT_S = RouterSettings().wait_s


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LadderMachine]:
    made = LadderMachine(tmp_path_factory.mktemp("ladder"))
    with made.stack:
        made.model(BYSTANDER)
        # The first look tries every engine out: on a busy machine it takes longer than a load waits for it.
        wait_until(lambda: made.load(BYSTANDER).status_code == 200, SOON_S, f"{BYSTANDER} loaded")
        assert made.status(BYSTANDER)["backend"] == "llama-server-vulkan"
        yield made
    made.stack.wait_for_end(20)


@pytest.fixture(scope="module")
def loads(
    machine: LadderMachine, hanging: "Future[list[httpx.Response]]"
) -> Iterator[dict[str, "Future[httpx.Response]"]]:
    """Every scripted load, under way."""
    for name, script in SCRIPTS.items():
        machine.model(name, **script)
    with ThreadPoolExecutor(len(SCRIPTS)) as callers:
        yield {name: callers.submit(machine.load, name, **REQUESTS.get(name, {})) for name in SCRIPTS}


@pytest.fixture(autouse=True)
def _bystander_unharmed(machine: LadderMachine) -> Iterator[None]:
    """Another model of the same GPU and the same build keeps its engine and answers."""
    before = engine_of(machine.status(BYSTANDER))
    yield
    assert machine.stack.chat(BYSTANDER).status_code == 200
    assert machine.status(BYSTANDER)["phase"] == "ready"
    assert engine_of(machine.status(BYSTANDER)) == before


def loaded(loads: "dict[str, Future[httpx.Response]]", name: str) -> dict[str, Any]:
    """The status that a load which succeeds answers with."""
    answer = loads[name].result(SOON_S * 2)
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    assert status["phase"] == "ready"
    return status


def refused(loads: "dict[str, Future[httpx.Response]]", name: str) -> dict[str, Any]:
    """The error that a load which fails answers with."""
    answer = loads[name].result(SOON_S * 2)
    assert answer.status_code == 502, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "engine_failed"
    return error


def deaths(status: dict[str, Any]) -> list[tuple[str, str]]:
    """Of which backend, of what; the first death first."""
    return [(one["backend"].removeprefix("llama-server-"), one["failure"]) for one in status["failures"]][
        ::-1
    ]


def excluded(machine: LadderMachine, name: str) -> dict[str, str]:
    """The reasons by backend."""
    exclusions = machine.status(name)["exclusions"]
    assert all(one["model"].startswith(f"{name}.gguf") for one in exclusions)
    assert {one["node_kind"] for one in exclusions} <= {"gfx1100"}
    return {one["backend"].removeprefix("llama-server-"): one["reason"] for one in exclusions}


def assert_one_engine(machine: LadderMachine, name: str, build: str) -> None:
    """The model answers by its only engine, of ``build``, and none of the dead is left."""
    status = machine.status(name)
    assert status["backend"] == f"llama-server-{build}"
    assert machine.starts(name)[-1].build == build
    answer = machine.stack.chat(name)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-xgen-backend"] == f"llama-server-{build}"

    def one_engine() -> bool:
        # The replica before may be seen for a moment longer.
        pids = [replica["pid"] for replica in machine.status(name)["replicas"]]
        return len(pids) == 1 and machine.alive(name) == pids

    wait_until(one_engine, 30, f"{name} has one engine")


# ---- deaths before the engine is ready ----------------------------------------------------------


def test_a_page_fault_is_tried_once_more(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "faults-once")
    assert machine.rungs("faults-once") == [VULKAN, VULKAN]
    assert deaths(status) == [(VULKAN, "gpu_page_fault")]
    assert excluded(machine, "faults-once") == {}
    assert_one_engine(machine, "faults-once", VULKAN)


def test_after_the_second_page_fault_the_next_backend_takes_over(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "faults")
    assert machine.rungs("faults") == [VULKAN, VULKAN, ROCM]
    assert deaths(status) == [(VULKAN, "gpu_page_fault")] * 2
    (death, _) = status["failures"]
    assert death["exit_code"] == -signal.SIGABRT
    assert death["evidence"] == PAGE_FAULT
    assert "page fault" in death["message"]
    assert "another backend" in death["advice"].lower()
    assert "page fault" in excluded(machine, "faults")[VULKAN]
    assert_one_engine(machine, "faults", ROCM)


def test_out_of_memory_tries_again_with_half_the_context(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "starves")
    assert machine.rungs("starves") == [VULKAN, VULKAN]
    first, second = (start.context for start in machine.starts("starves"))
    assert (first, second) == (8192, 4096)
    assert status["engines"][0]["context"] == second
    assert deaths(status) == [(VULKAN, "out_of_memory")]
    assert excluded(machine, "starves") == {}
    assert_one_engine(machine, "starves", VULKAN)


def test_a_context_that_was_asked_for_stays_and_the_backend_goes(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "starves-as-asked")
    assert machine.rungs("starves-as-asked") == [VULKAN, ROCM]
    assert {start.context for start in machine.starts("starves-as-asked")} == {4096}
    assert deaths(status) == [(VULKAN, "out_of_memory")]
    assert "ran out of memory" in excluded(machine, "starves-as-asked")[VULKAN]
    assert_one_engine(machine, "starves-as-asked", ROCM)


def test_a_bad_file_is_never_tried_again(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    error = refused(loads, "damaged")
    assert machine.rungs("damaged") == [VULKAN]
    assert "damaged or incomplete" in error["message"]
    assert "checksum" in error["message"]
    assert error["details"]["failure"] == "bad_model_file"
    assert DAMAGED in error["details"]["log_tail"]
    status = machine.status("damaged")
    assert (status["phase"], status["reason"]) == ("failed", error["message"])
    assert deaths(status) == [(VULKAN, "bad_model_file")]
    assert excluded(machine, "damaged") == {}
    assert machine.alive("damaged") == []
    assert machine.stack.chat("damaged").status_code == 502


def test_an_engine_that_ends_with_success_has_failed(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "ends")
    assert machine.rungs("ends") == [VULKAN, VULKAN, VULKAN, ROCM]
    assert deaths(status) == [(VULKAN, "crashed")] * 3
    assert {death["exit_code"] for death in status["failures"]} == {0}
    assert "exit code 0" in excluded(machine, "ends")[VULKAN]
    assert_one_engine(machine, "ends", ROCM)


def test_crashes_lead_down_to_the_cpu(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "crashes")
    assert machine.rungs("crashes") == [VULKAN] * 3 + [ROCM] * 3 + [CPU]
    assert deaths(status) == [(VULKAN, "crashed")] * 3 + [(ROCM, "crashed")] * 3
    assert {death["exit_code"] for death in status["failures"]} == {-signal.SIGSEGV}
    reasons = excluded(machine, "crashes")
    assert reasons.keys() == {VULKAN, ROCM}
    assert all("segmentation fault" in reason for reason in reasons.values())
    assert_one_engine(machine, "crashes", CPU)


def test_health_that_says_yes_is_not_believed(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "pretends")
    assert machine.rungs("pretends") == [VULKAN, ROCM, CPU]
    assert deaths(status) == [(VULKAN, "canary_failed"), (ROCM, "canary_failed")]
    assert "told to fail" in status["failures"][0]["message"]
    assert excluded(machine, "pretends").keys() == {VULKAN, ROCM}
    assert_one_engine(machine, "pretends", CPU)


def test_a_backend_that_was_asked_for_by_name_is_not_left(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    """To leave it out would leave the model with nothing: the load fails with the engine's own words."""
    error = refused(loads, "pinned")
    assert machine.rungs("pinned") == [ROCM]
    assert "cannot compute" in error["message"]
    assert "told to fail" in error["message"]
    assert error["details"]["failure"] == "canary_failed"
    assert machine.status("pinned")["phase"] == "failed"
    assert excluded(machine, "pinned") == {}
    assert machine.alive("pinned") == []


def test_a_slow_load_is_not_a_death(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    status = loaded(loads, "slow")
    assert machine.rungs("slow") == [VULKAN]
    assert status["failures"] == []
    assert_one_engine(machine, "slow", VULKAN)


def test_what_has_died_holds_no_memory(
    machine: LadderMachine, loads: "dict[str, Future[httpx.Response]]"
) -> None:
    """Leases of engines that run, and no others."""
    for load in loads.values():
        load.result(SOON_S)

    others = [BYSTANDER, "hangs"]
    running = set(SCRIPTS) - {"damaged", "pinned"}

    def ready() -> set[str]:
        return {name for name in SCRIPTS if machine.status(name)["phase"] == "ready"}

    wait_until(lambda: ready() == running, SOON_S, "every model at rest")
    assert_leased(machine, *running, *others)
    for name in SCRIPTS:
        unload(machine, name)
    assert_leased(machine, *others)


def assert_leased(machine: LadderMachine, *names: str) -> None:
    """Soon there is one lease for each engine of these models, and no other."""
    deadline = time.monotonic() + 30
    while True:
        (node,) = machine.stack.management("GET", "nodes").json()["nodes"]
        held = sorted(lease["model"] for lease in node["leases"])
        if held == sorted(names):
            return
        assert time.monotonic() < deadline, f"leased are {node['leases']}, engines have {sorted(names)}"
        time.sleep(0.5)


def unload(machine: LadderMachine, name: str) -> None:
    answer = machine.stack.unload(name)
    assert answer.status_code == 200, answer.text
    assert machine.stack.status(name) is None
    assert machine.alive(name) == []


# ---- deaths of engines that had served ----------------------------------------------------------


def serving(machine: LadderMachine, name: str, **script: list[list[str]]) -> int:
    """A model that is ready by Vulkan; its engine's process."""
    machine.model(name, **script)
    answer = machine.load(name)
    assert answer.status_code == 200, answer.text
    assert machine.rungs(name) == [VULKAN]
    return engine_of(answer.json())


def test_a_page_fault_in_a_request_is_answered_by_the_successor(machine: LadderMachine) -> None:
    """Twice: first by a fresh engine of the same backend, then by the next backend."""
    serving(machine, "faults-later")
    for build in (VULKAN, ROCM):
        machine.set("faults-later", die_of_request=True, abort=True, last_words=[PAGE_FAULT])
        answer = machine.stack.chat("faults-later")
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-xgen-backend"] == f"llama-server-{build}"
    assert machine.rungs("faults-later") == [VULKAN, VULKAN, ROCM]
    status = machine.status("faults-later")
    assert deaths(status) == [(VULKAN, "gpu_page_fault")] * 2
    assert "page fault" in excluded(machine, "faults-later")[VULKAN]
    assert_one_engine(machine, "faults-later", ROCM)
    unload(machine, "faults-later")


@pytest.fixture(scope="module")
def hanging(machine: LadderMachine) -> Iterator["Future[list[httpx.Response]]"]:
    """To find a hang takes half a minute of waiting: it happens while the other models load."""
    with ThreadPoolExecutor(1) as teller:
        yield teller.submit(hang_twice, machine)


def hang_twice(machine: LadderMachine) -> list[httpx.Response]:
    """An engine's process is stopped: it takes connections and says nothing, and TERM does not reach it. The
    answers to what was asked meanwhile.
    """
    pid = serving(machine, "hangs")
    answers = []
    with ThreadPoolExecutor(1) as caller:
        for _ in range(2):
            os.kill(pid, signal.SIGSTOP)
            waiting = caller.submit(machine.stack.chat, "hangs")
            status = machine.until_ready("hangs", pid, SOON_S)
            answer = waiting.result(SOON_S)
            if answer.elapsed.total_seconds() >= ROUTER_WAIT_S:
                # A router lets nobody wait for longer, and all of this may take longer on a busy machine.
                answer = machine.stack.chat("hangs")
            answers.append(answer)
            assert not psutil.pid_exists(pid)
            pid = engine_of(status)
    return answers


def test_an_engine_that_hangs_is_replaced(
    machine: LadderMachine, hanging: "Future[list[httpx.Response]]"
) -> None:
    answers = hanging.result(SOON_S * 3)
    assert [answer.status_code for answer in answers] == [200, 200], [answer.text for answer in answers]
    backends = [answer.headers["x-xgen-backend"] for answer in answers]
    assert backends == ["llama-server-vulkan", "llama-server-rocm"]
    assert machine.rungs("hangs") == [VULKAN, VULKAN, ROCM]
    assert deaths(machine.status("hangs")) == [(VULKAN, "wedged")] * 2
    assert "did not answer" in excluded(machine, "hangs")[VULKAN]
    unload(machine, "hangs")


def test_an_engine_whose_health_lies_is_found_out_by_its_requests(machine: LadderMachine) -> None:
    pid = serving(machine, "lies")
    for build in (VULKAN, ROCM):
        machine.set("lies", fail_chat=500)
        answer = machine.stack.chat("lies")
        assert answer.status_code == 500
        assert "told to fail" in answer.json()["error"]["message"]
        pid = engine_of(machine.until_ready("lies", pid, SOON_S))
        assert_one_engine(machine, "lies", build)
    assert machine.rungs("lies") == [VULKAN, VULKAN, ROCM]
    assert deaths(machine.status("lies")) == [(VULKAN, "wedged")] * 2
    assert "told to fail" in excluded(machine, "lies")[VULKAN]
    unload(machine, "lies")


def test_one_failed_request_costs_no_engine_its_life(machine: LadderMachine) -> None:
    """A request that an engine cannot serve is no proof against the engine."""
    pid = serving(machine, "unlucky")
    machine.set("unlucky", fail_chat=500, fail_first=1)
    assert machine.stack.chat("unlucky").status_code == 500
    time.sleep(3)  # longer than a proof takes: nothing happens, which there is no sign of
    assert engine_of(machine.status("unlucky")) == pid
    assert machine.status("unlucky")["failures"] == []
    assert machine.stack.chat("unlucky").status_code == 200
    unload(machine, "unlucky")


def test_an_engine_that_ignores_the_end_ends_with_all_it_has_started(
    machine: LadderMachine, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    stubborn = ["--ignore-term", "--spawn-grandchild", "--pid-file", str(pids)]
    pid = serving(machine, "stubborn", vulkan=[stubborn])
    engine, grandchild = map(int, pids.read_text().split())
    assert engine == pid
    assert psutil.pid_exists(grandchild)
    unload(machine, "stubborn")
    assert not psutil.pid_exists(engine)
    assert not psutil.pid_exists(grandchild)


def test_a_grandchild_does_not_outlive_an_engine_that_dies(machine: LadderMachine, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pid = serving(machine, "parent", vulkan=[["--spawn-grandchild", "--pid-file", str(pids)], WELL])
    grandchild = int(pids.read_text().split()[1])
    os.kill(pid, signal.SIGSEGV)
    machine.until_ready("parent", pid, SOON_S)
    assert not psutil.pid_exists(grandchild)
    assert deaths(machine.status("parent")) == [(VULKAN, "crashed")]
    assert_one_engine(machine, "parent", VULKAN)
    unload(machine, "parent")


# ---- what is learned, and forgotten -------------------------------------------------------------


def test_what_was_learned_outlives_control_and_is_lifted_by_hand(machine: LadderMachine) -> None:
    learn(machine, "learned")
    before = engine_of(machine.status("learned"))
    killed = machine.stack.named("ray::ServeReplica:xgen-control")
    assert killed
    for process in killed:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(killed, timeout=10)
    wait_until(lambda: phase_of(machine, "learned") == "ready", SOON_S, "the new control knows the model")
    assert engine_of(machine.status("learned")) == before, "its engine was not touched"
    assert "cannot compute" in excluded(machine, "learned")[VULKAN]
    again(machine, "learned", ROCM)
    lift(machine, "learned", 204)
    assert excluded(machine, "learned") == {}
    assert engine_of(machine.status("learned")) != before
    (machine.models.parent / "scripts" / "learned.json").unlink()
    again(machine, "learned", VULKAN)
    lift(machine, "learned", 404)
    unload(machine, "learned")


def learn(machine: LadderMachine, name: str) -> None:
    machine.model(name, vulkan=[CANNOT_COMPUTE])
    answer = machine.load(name)
    assert answer.status_code == 200, answer.text
    assert machine.rungs(name) == [VULKAN, ROCM]


def phase_of(machine: LadderMachine, name: str) -> str | None:
    """From a control that may be away just now."""
    try:
        status = machine.stack.status(name)
    except (httpx.TransportError, ValueError, KeyError):
        return None
    return None if status is None else str(status["phase"])


def again(machine: LadderMachine, name: str, build: str) -> None:
    """Unload and load once more: this build is the first that is tried."""
    unload(machine, name)
    tried = len(machine.starts(name))
    answer = machine.load(name)
    assert answer.status_code == 200, answer.text
    assert machine.rungs(name)[tried:] == [build]


def lift(machine: LadderMachine, name: str, expected: int) -> None:
    answer = machine.stack.management("POST", "lift", json={"model": name})
    assert answer.status_code == expected, answer.text


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LadderMachine]:
    """A second stack, which tells metrics, and is stopped and started again."""
    made = LadderMachine(tmp_path_factory.mktemp("another"), "--metrics-port", str(free_port()))
    with made.stack:
        learn(made, "kept")
        yield made


@needs_prometheus()
def test_prometheus_is_told_of_what_failed_and_of_the_backend_left_out(
    another: LadderMachine, tmp_path: Path
) -> None:
    another.set("kept", die_of_request=True, abort=True, last_words=[PAGE_FAULT])
    assert another.stack.chat("kept").status_code == 200, "by its successor"
    told = {"ray_xgen_failures_total", "ray_xgen_demotions_total", "ray_xgen_engine_cache_ratio"}
    asked = {
        where: expression
        for where, expression in looked_at()
        if where == "XgenRayRequestsFail" or names_in(expression) & told
    }
    with scraping(another.stack.url, tmp_path) as prometheus:
        prometheus.wait_for_data(asked)
        left_out = {"model": "kept", "backend": "llama-server-vulkan"}
        prometheus.wait_for(
            "sum by (model, backend) (ray_xgen_demotions_total)",
            lambda seen: [(one["metric"], one["value"][1]) for one in seen] == [(left_out, "1")],
        )
        deaths = {
            ("llama-server-vulkan", "canary_failed", "1"),
            ("llama-server-rocm", "gpu_page_fault", "1"),
        }
        prometheus.wait_for(
            "sum by (backend, failure) (ray_xgen_failures_total)",
            lambda seen: (
                {(one["metric"]["backend"], one["metric"]["failure"], one["value"][1]) for one in seen}
                == deaths
            ),
        )


def test_what_was_learned_outlives_the_stack(another: LadderMachine) -> None:
    tried = another.rungs("kept")
    another.stack.stop()
    another.stack.wait_for_end(20)
    another.stack.start()
    wait_until(lambda: phase_of(another, "kept") == "ready", SOON_S, "the model is back")
    assert another.rungs("kept") == [*tried, ROCM]
    assert "cannot compute" in excluded(another, "kept")[VULKAN]
    plan = another.stack.management("POST", "plan", json={"model": str(another.models / "kept.gguf")})
    assert plan.json()["backend"] == "llama-server-rocm"
    reasons = {one["backend"]: one["reasons"] for one in plan.json()["candidates"]}
    assert "cannot compute" in " ".join(reasons["llama-server-vulkan"])
    lift(another, "kept", 204)
    assert excluded(another, "kept") == {}
    assert another.status("kept")["backend"] == "llama-server-rocm", "what runs is left alone"
