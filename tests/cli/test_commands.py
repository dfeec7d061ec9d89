"""Each command against a served fleet."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tests.cli.fleet import EVERYWHERE, KEY, NO_GPU, NO_ROOM, REFUSAL, Fleet, ready, spread_out
from xgen_ray import __version__
from xgen_ray.cli.exits import ExitCode
from xgen_ray.placement.types import Backend, EngineOptions
from xgen_ray.schema import (
    AwaitedNodes,
    FailureReport,
    LoadRequest,
    ModelStatus,
    Phase,
    PlanReport,
    ScaleRequest,
    Scaling,
    StatusReport,
)

# What a command line says of a model's size, and the rule that it asks for.
RULES = (
    ("--max-replicas 4", Scaling(max_replicas=4)),
    # A minimum alone is no permission to grow.
    ("--min-replicas 3", Scaling(min_replicas=3, max_replicas=3)),
    ("--min-replicas 0 --max-replicas 4 --ttl 600", Scaling(min_replicas=0, max_replicas=4, ttl_s=600)),
    # Who says after what time it sleeps wants it to sleep.
    ("--ttl 0.5", Scaling(min_replicas=0, ttl_s=0.5)),
    ("--min-replicas 1 --ttl 60", Scaling(ttl_s=60)),
    ("--max-replicas 4 --keep-warm 2", Scaling(max_replicas=4, keep_warm=2)),
    ("--keep-warm 0", Scaling()),
)
NO_SIZE = (
    ("--min-replicas 3 --max-replicas 2", "error: min_replicas is 3, max_replicas only 2."),
    ("--ttl -1", "'--ttl': Input should be greater than or equal to 0"),
    ("--ttl 9999999", "error: --ttl: Input should be less than or equal to 2592000, got 9999999.0."),
    ("--min-replicas -1", "'--min-replicas': Input should be greater"),
    ("--max-replicas 0", "'--max-replicas': Input should be greater"),
    ("--max-replicas 65", "'--max-replicas': Input should be less"),
    ("--keep-warm 65", "'--keep-warm': Input should be less"),
    ("--replicas 0", "'--replicas': Input should be greater"),
    ("--replicas many", "'--replicas'"),
    ("--replicas 2 --max-replicas 4", "error: Give either --replicas, a fixed number, or --min-replicas"),
)


def test_load_waits_until_ready_and_shows_the_way_in(call: Call, fleet: Fleet, url: str) -> None:
    result = call("load", "/models/small.gguf", "--context", "2048", "-o", "flash_attention=off")
    assert result.exit_code == ExitCode.OK, result.output
    assert "small is ready on llama-server-cpu (node-a)" in result.stdout
    assert "http://127.0.0.1:8000/v1" in result.stdout
    assert f"curl {url}/v1/chat/completions" in result.stdout
    assert "$XGEN_RAY_API_KEY" in result.stdout
    assert KEY not in result.output
    stages = [line.split(": ", 1)[1] for line in result.stderr.splitlines()]
    assert stages == ["downloading", "reading tensors", "answering"]
    assert fleet.requests[0].options == EngineOptions(context=2048, flash_attention=False)


def test_load_makes_paths_absolute(
    call: Call, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("load", "small.gguf", "--no-wait", "--name", "org/s").exit_code == ExitCode.OK
    assert call("load", "hf:org/name", "--no-wait").exit_code == ExitCode.OK
    assert [request.model for request in fleet.requests] == [str(tmp_path / "small.gguf"), "hf:org/name"]
    assert fleet.requests[0].name == "org/s"


def test_load_without_waiting_returns_at_once(call: Call, fleet: Fleet) -> None:
    result = call("load", "/models/stuck.gguf", "--no-wait")
    assert result.exit_code == ExitCode.OK
    assert "stuck is resolving" in result.stdout
    assert fleet.models["stuck"].phase is Phase.RESOLVING


def test_load_prints_the_final_state_as_json(call: Call) -> None:
    result = call("load", "/models/small.gguf", "--json")
    assert ModelStatus.model_validate_json(result.stdout).phase is Phase.READY


def test_a_failed_load_tells_why_and_what_to_do(call: Call) -> None:
    result = call("load", "/models/broken.gguf")
    assert result.exit_code == ExitCode.FAILED
    assert "error: broken: The engine ran out of memory." in result.stderr
    assert "failed to allocate buffer for kv cache" in result.stderr
    assert "Lower the context." in result.stderr
    assert result.stdout == ""


def test_a_failed_load_has_its_state_as_json(call: Call) -> None:
    result = call("load", "/models/broken.gguf", "--json")
    assert result.exit_code == ExitCode.FAILED
    assert ModelStatus.model_validate_json(result.stdout).phase is Phase.FAILED


def test_a_refused_load_shows_every_backend(call: Call) -> None:
    result = call("load", "/models/refused.gguf")
    assert result.exit_code == ExitCode.REFUSED
    assert f"error: {REFUSAL}" in result.stderr
    assert "no NVIDIA GPU on this node" in result.stderr
    assert "41.2 GiB" in result.stderr


@pytest.mark.parametrize("model", ["refused-everywhere", "unplaced"])
def test_a_load_that_fits_on_no_node_shows_each(call: Call, model: str) -> None:
    result = call("load", f"/models/{model}.gguf")
    assert result.exit_code == ExitCode.REFUSED
    assert EVERYWHERE in result.stderr
    rows = [re.split(r"  +", line.strip()) for line in result.stderr.splitlines()]
    needs = {"refused-everywhere": "-", "unplaced": "41.2 GiB"}[model]
    why = "needs 41.2 GiB, [0] NVIDIA L4 has 20.0 GiB free"
    assert ["gpu-1", "llama-server-cuda", "no", needs, why] in rows
    # Nodes that say the same share a row.
    assert ["a, b", "llama-server-cuda", "no", needs, NO_GPU] in rows
    assert (["c", "-", "enough others looked better"] in rows) is (model == "unplaced")
    assert "abacus" not in result.stderr


def test_load_says_where_and_what_may_leave(call: Call, fleet: Fleet) -> None:
    asked = ("--node", "gpu-1", "--node", "apu-1", "--node", "gpu-1", "--evict", "idle", "--spread")
    assert call("load", "/models/small.gguf", "--no-wait", *asked).exit_code == ExitCode.OK
    assert call("load", "/models/small.gguf", "--no-wait").exit_code == ExitCode.OK
    first, second = fleet.requests
    assert (first.nodes, first.evict, first.options.spread) == (("gpu-1", "apu-1"), "idle", True)
    assert (second.nodes, second.evict, second.options.spread) == (None, "never", None)
    assert call("load", "m", "--evict", "everything").exit_code == ExitCode.USAGE
    assert call("load", "m", "--spread", "-o", "spread=false").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(("said", "rule"), RULES)
def test_load_says_how_a_model_grows_and_sleeps(call: Call, fleet: Fleet, said: str, rule: Scaling) -> None:
    assert call("load", "/models/small.gguf", "--no-wait", *said.split()).exit_code == ExitCode.OK
    assert fleet.requests == [LoadRequest(model="/models/small.gguf", scaling=rule)]


def test_load_says_its_pool_its_number_and_that_it_stays(call: Call, fleet: Fleet) -> None:
    asked = ("--name", "llama", "--pool", "apu", "--replicas", "2", "--pin")
    assert call("load", "hf:org/name", "--no-wait", *asked).exit_code == ExitCode.OK
    wanted = LoadRequest(model="hf:org/name", name="llama", pool="apu", replicas=2, pinned=True)
    assert fleet.requests == [wanted]
    wrong = call("load", "hf:org/name", "--pool", "a@b")
    assert wrong.exit_code == ExitCode.USAGE
    assert "error: --pool: String should match pattern" in wrong.stderr
    assert fleet.requests == [wanted]


@pytest.mark.parametrize("command", ["load m", "scale small"])
@pytest.mark.parametrize(("said", "complaint"), NO_SIZE)
def test_a_size_that_cannot_be_meant_is_refused_before_it_is_sent(
    call: Call, fleet: Fleet, command: str, said: str, complaint: str
) -> None:
    fleet.models["small"] = ready("small")
    result = call(*command.split(), *said.split())
    assert result.exit_code == ExitCode.USAGE
    assert complaint in result.stderr
    assert result.stdout == ""
    assert (fleet.requests, fleet.scaled) == ([], [])


@pytest.mark.parametrize(("said", "rule"), RULES)
def test_scale_sends_the_rule(call: Call, fleet: Fleet, said: str, rule: Scaling) -> None:
    fleet.models["small"] = ready("small")
    assert call("scale", "small", *said.split()).exit_code == ExitCode.OK
    assert fleet.scaled == [ScaleRequest(name="small", scaling=rule)]


def test_scale_sends_the_number_and_says_what_will_be(call: Call, fleet: Fleet) -> None:
    fleet.models["llama@apu"] = ready("llama@apu")
    result = call("scale", "llama@apu", "--replicas", "3")
    assert result.exit_code == ExitCode.OK
    assert result.stdout == "llama@apu is to have 3; `xgen-ray ps llama@apu` shows how far it is\n"
    as_json = call("scale", "llama@apu", "--replicas", "2", "--json")
    assert ModelStatus.model_validate_json(as_json.stdout).wanted_replicas == 2
    assert fleet.scaled == [ScaleRequest(name="llama@apu", replicas=number) for number in (3, 2)]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nobody", "--replicas", "2"), "error: no model is named 'nobody'"),
        (("small",), "error: Give either --replicas, a fixed number, or --min-replicas"),
        (("a@@b", "--replicas", "2"), "error: name: String should match pattern"),
    ],
)
def test_scale_needs_a_model_and_a_size(
    call: Call, fleet: Fleet, arguments: tuple[str, ...], complaint: str
) -> None:
    fleet.models["small"] = ready("small")
    result = call("scale", *arguments)
    assert result.exit_code == ExitCode.USAGE
    assert complaint in result.stderr
    assert result.stdout == ""


def test_a_load_that_takes_too_long_goes_on_by_itself(call: Call, fleet: Fleet) -> None:
    started = time.monotonic()
    result = call("load", "/models/stuck.gguf", "--timeout", "1")
    assert result.exit_code == ExitCode.TIMED_OUT
    assert 1 <= time.monotonic() - started < 10
    assert "goes on loading" in result.stderr
    assert "stuck" in fleet.models


def test_a_model_that_someone_unloads_meanwhile_is_no_success(call: Call) -> None:
    result = call("load", "/models/gone.gguf")
    assert result.exit_code == ExitCode.FAILED
    assert "unloaded by someone" in result.stderr


def test_unload_waits_until_it_is_gone(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    result = call("unload", "small")
    assert result.exit_code == ExitCode.OK
    assert result.stdout == "small is unloaded\n"
    assert fleet.models == {}


def test_unload_of_a_stranger_is_the_callers_fault(call: Call) -> None:
    result = call("unload", "nobody")
    assert result.exit_code == ExitCode.USAGE
    assert "error: no model is named 'nobody'" in result.stderr


def test_ps_lists_models_in_lines_that_a_script_can_cut(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    result = call("ps")
    assert result.exit_code == ExitCode.OK
    header, row = (line.split() for line in result.stdout.splitlines())
    assert header == ["NAME", "PHASE", "BACKEND", "WHERE", "SLOTS", "SINCE", "REASON"]
    assert row[:4] == ["small", "ready", "llama-server-cpu", "node-a"]
    assert row[4:7] == ["4", "x", "2048"]
    assert row[7].startswith("1m0")
    assert row[8] == "answering"


def test_ps_without_models_says_how_to_get_one(call: Call) -> None:
    assert "xgen-ray load MODEL" in call("ps").stdout


def test_ps_of_one_model_tells_all(call: Call, fleet: Fleet) -> None:
    death = FailureReport(
        failure="killed", message="It was killed.", advice="Find out by whom.", at=time.time()
    )
    fleet.models["small"] = ready("small", failures=(death,))
    text = call("ps", "small").stdout
    for part in ("/models/small.gguf", "r1", "4711", "nothing better is here", "slots=4", "It was killed."):
        assert part in text
    assert call("ps", "nobody").exit_code == ExitCode.USAGE


def test_ps_shows_where_a_spread_model_is(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = spread_out("small")
    row = re.split(r"  +", call("ps").stdout.splitlines()[1].strip())
    assert row[2:5] == ["llama-server-cuda +1", "gpu-1 x2, apu-1", "4 x 8192 +1"]
    assert row[6] == "answering; 3 of 4 replicas have a place"


def test_ps_of_one_model_has_its_engines_and_what_is_left_out(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = spread_out("small")
    rows = [re.split(r"  +", line.strip()) for line in call("ps", "small").stdout.splitlines()]
    for row in (
        ["missing", "3 of 4 replicas have a place"],
        ["why", "gpu-1: the first choice for gguf"],
        ["memory", "8.0 GiB"],
        ["gpu-1", "llama-server-cuda", "running", "yes", "4 x 8192", "3.0 GiB", "[0] NVIDIA L4"],
        ["apu-1", "llama-server-cpu", "starting", "no", "1 x 8192", "2.0 GiB", "-"],
        ["llama-server-rocm", "gfx1151", "on apu-1: it page-faulted twice"],
        ["Once that is mended: xgen-ray lift small"],
    ):
        assert row in rows
    fleet.models["small"] = ready("small")
    assert "lift" not in call("ps", "small").stdout


def test_ps_says_what_node_a_model_waits_for(call: Call, fleet: Fleet) -> None:
    awaited = AwaitedNodes(types={"amd": 2}, since=time.time() - 65)
    fleet.models["small"] = ready("small").model_copy(update={"awaited_nodes": awaited})
    shown = re.sub(r" +", " ", call("ps", "small").stdout)
    assert re.search(r"nodes of the type 2 x amd, for 1m(0[5-9]|[1-5]\d)s", shown)


def test_ps_as_json_is_the_servers_report(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    report = StatusReport.model_validate_json(call("ps", "--json").stdout)
    assert [model.name for model in report.models] == ["small"]


def test_plan_shows_choice_reasons_and_memory(call: Call) -> None:
    result = call("plan", "/models/small.gguf", "--backend", "llama-server-cpu", "--gpu", "none")
    assert result.exit_code == ExitCode.OK
    for part in (
        "would run on llama-server-cpu",
        "no NVIDIA GPU on this node",
        "weights",
        "91 MiB",
        "2.1 GiB",
        "context=2048",
        "slots = 4: a default",
        "runs on the CPU",
    ):
        assert part in result.stdout


def test_plan_sends_what_was_asked(call: Call, fleet: Fleet) -> None:
    call("plan", "hf:org/name", "--backend", "vllm-cuda", "--gpu", "0", "--gpu", "1", "-o", "dtype=half")
    assert fleet.requests[0].model == "hf:org/name"
    assert fleet.requests[0].options == EngineOptions(backend=Backend.VLLM_CUDA, gpus=(0, 1), dtype="half")


def test_a_refused_plan_is_an_answer_with_an_exit_code(call: Call) -> None:
    result = call("plan", "/models/refused.gguf")
    assert result.exit_code == ExitCode.REFUSED
    assert REFUSAL in result.stdout
    as_json = call("plan", "/models/refused.gguf", "--json")
    assert as_json.exit_code == ExitCode.REFUSED
    assert PlanReport.model_validate_json(as_json.stdout).accepted is False


def test_a_plan_of_one_node_has_no_table_of_nodes(call: Call) -> None:
    assert "NODE" not in call("plan", "/models/small.gguf").stdout


def test_a_plan_of_several_nodes_has_all_their_reasons(call: Call, fleet: Fleet) -> None:
    result = call("plan", "/models/pair.gguf", "--replicas", "3", "--node", "gpu-1", "--evict", "idle")
    assert result.exit_code == ExitCode.OK
    rows = [re.split(r"  +", line.strip()) for line in result.stdout.splitlines()]
    for row in (
        ["2", "gpu-1", "llama-server-cuda", "3.0 GiB", "[0] NVIDIA L4", "the first choice for gguf"],
        ["1", "a", "llama-server-cpu", "3.0 GiB", "-", "the first choice for gguf"],
        ["gpu-1", "yes", "3.0 GiB left there"],
        ["a, b", "no", "no GPU"],
        ["c", "-", "enough others looked better"],
        ["gpu-1", "llama-server-cuda", "yes", "41.2 GiB", "-"],
        ["NODE", "GPU", "BACKEND", "FITS", "WHY"],
        ["gpu-1", "[0] NVIDIA L4", "llama-server-cuda", "yes", "would take 19.0 GiB of 20.0 GiB free"],
        ["gpu-1", "[1, 2] NVIDIA L4", "llama-server-cuda", "no", NO_ROOM],
        ["leaves", "old: idle, unloaded first"],
    ):
        assert row in rows
    (request,) = fleet.requests
    assert (request.replicas, request.nodes, request.evict) == (3, ("gpu-1",), "idle")


def test_a_refused_plan_says_what_could_leave(call: Call) -> None:
    result = call("plan", "/models/refused-everywhere.gguf")
    assert result.exit_code == ExitCode.REFUSED
    assert "--evict idle unloads old, older first" in result.stdout
    assert re.search(rf"gpu-1 +\[0, 1, 2\] NVIDIA L4 +llama-server-cuda +no +{NO_ROOM}", result.stdout)
    as_json = call("plan", "/models/refused-everywhere.gguf", "--json")
    (cuda,) = PlanReport.model_validate_json(as_json.stdout).nodes[0].candidates
    assert [(gpu.id, gpu.fits, gpu.reason) for gpu in cuda.gpus] == [
        (place, False, NO_ROOM) for place in range(3)
    ]


@pytest.mark.parametrize("option", [("--node", "a"), ("--evict", "idle"), ("--replicas", "2")])
def test_what_needs_a_fleet_is_not_planned_for_this_machine(call: Call, option: tuple[str, ...]) -> None:
    local = call("plan", "/models/small.gguf", "--local", *option)
    assert local.exit_code == ExitCode.USAGE
    assert option[0] in local.stderr
    nowhere = call("plan", "/models/small.gguf", *option, env={"XGEN_RAY_URL": "http://127.0.0.1:9"})
    assert nowhere.exit_code == ExitCode.UNREACHABLE
    assert nowhere.stdout == ""


def test_lift_tells_what_is_forgiven(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = spread_out("small")
    result = call("lift", "small", "--backend", "llama-server-rocm")
    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == [
        "lifted: llama-server-rocm on gfx1151 (on apu-1: it page-faulted twice)",
        "small may use llama-server-rocm again",
    ]
    assert [one.backend for one in fleet.models["small"].exclusions] == [Backend.LLAMA_SERVER_VULKAN]
    failed = {"phase": Phase.FAILED}
    fleet.models["small"] = fleet.models["small"].model_copy(update=failed)
    assert "small is tried again" in call("lift", "small").stdout
    assert fleet.models["small"].exclusions == ()


def test_lift_as_json_has_what_was_lifted(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = spread_out("small")
    answer = json.loads(call("lift", "small", "--json").stdout)
    assert (answer["model"], answer["backend"]) == ("small", None)
    assert [one["backend"] for one in answer["lifted"]] == ["llama-server-rocm", "llama-server-vulkan"]


def test_lift_of_what_was_never_excluded_is_the_callers_fault(call: Call, fleet: Fleet) -> None:
    nobody = call("lift", "nobody")
    assert nobody.exit_code == ExitCode.USAGE
    assert nobody.stderr.splitlines() == [
        "error: nothing is excluded for 'nobody'; excluded: k1",
        "`xgen-ray ps NAME` shows what is excluded for a model, and why.",
    ]
    fleet.models["small"] = spread_out("small")
    other = call("lift", "small", "--backend", "vllm-cpu")
    assert other.exit_code == ExitCode.USAGE
    assert "Excluded for small: llama-server-rocm, llama-server-vulkan." in other.stderr
    assert call("lift", "small", "--backend", "abacus").exit_code == ExitCode.USAGE


def test_logs_prints_all_or_the_last(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    fleet.engine = ("r1", [f"line {number}" for number in range(2500)])
    assert call("logs", "small").stdout.splitlines() == fleet.log_lines
    assert call("logs", "small", "-n", "2").stdout.splitlines() == ["line 2498", "line 2499"]
    assert call("logs", "small", "-n", "0").stdout == ""
    line = json.loads(call("logs", "small", "-n", "1", "--json", "--replica", "r1").stdout)
    assert line == {"replica_id": "r1", "line": "line 2499"}
    assert call("logs", "small", "--replica", "r9").exit_code == ExitCode.USAGE
    assert call("logs", "nobody").exit_code == ExitCode.USAGE


def test_chat_answers_one_message(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    result = call("chat", "-m", "hi", "--system", "be kind", "--temperature", "0", "--max-tokens", "9")
    assert result.exit_code == ExitCode.OK, result.output
    # No terminal: the answer goes out as it came, and nothing else does.
    assert result.stdout == "Hello there, \x1b[31mred [bold]friend[/bold].\n"
    assert result.stderr == ""
    body = fleet.chats[0]
    assert body["model"] == "small"
    assert body["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
    ]
    assert (body["temperature"], body["max_tokens"]) == (0, 9)


def test_chat_reads_its_message_from_stdin(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    assert call("chat", "small", typed="what is this?\n").exit_code == ExitCode.OK
    assert fleet.chats[0]["messages"] == [{"role": "user", "content": "what is this?\n"}]


def test_chat_as_json_has_the_figures(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    answer = json.loads(call("chat", "-m", "hi", "--json").stdout)
    assert answer["tokens"] == 12
    assert answer["prompt_tokens"] == 4
    assert answer["finish_reason"] == "stop"
    assert 0 < answer["ttft_s"] <= answer["total_s"]
    # Eleven gaps within what is left after the first token.
    assert answer["tokens_per_s"] >= 11 / (answer["total_s"] - answer["ttft_s"])


@pytest.mark.parametrize("names", [(), ("a", "b")])
def test_chat_asks_which_when_it_cannot_know(call: Call, fleet: Fleet, names: tuple[str, ...]) -> None:
    for name in names:
        fleet.models[name] = ready(name)
    result = call("chat", "-m", "hi")
    assert result.exit_code == ExitCode.USAGE
    for name in names:
        assert name in result.stderr


def test_chat_passes_on_what_the_server_refuses(call: Call) -> None:
    result = call("chat", "nobody", "-m", "hi")
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr == "error: no such model\n"


@pytest.mark.parametrize("arguments", [("-m", " "), ("--json",)])
def test_chat_needs_something_to_say(call: Call, arguments: tuple[str, ...]) -> None:
    assert call("chat", "small", *arguments, typed="").exit_code == ExitCode.USAGE


def test_bench_prints_a_table_and_writes_json(call: Call, fleet: Fleet, tmp_path: Path) -> None:
    fleet.models["small"] = ready("small")
    file = tmp_path / "result.json"
    result = call("bench", "--streams", "1,2", "--requests", "2", "--json", str(file))
    assert result.exit_code == ExitCode.OK, result.output
    assert "llama-server-cpu" in result.stdout
    assert "stable" in result.stdout
    report = json.loads(file.read_text())
    assert [level["streams"] for level in report["levels"]] == [1, 2]
    assert [level["requests"] for level in report["levels"]] == [2, 4]
    assert report["levels"][1]["output_tokens"] == 4 * 12
    assert report["about"]["backend"] == "llama-server-cpu"
    assert report["about"]["context"] == 2048
    assert report["about"]["stability"] == "stable"
    assert KEY not in file.read_text()


def test_bench_to_stdout_is_json_alone(call: Call, fleet: Fleet) -> None:
    fleet.models["small"] = ready("small")
    result = call("bench", "--streams", "1", "--requests", "1", "--json", "-")
    assert json.loads(result.stdout)["model"] == "small"


@pytest.mark.parametrize(
    "arguments",
    [("--streams", "0"), ("--streams", "one"), ("--streams", ""), ("--model", "nobody"), ("--json", "/no/x")],
)
def test_bench_refuses_what_cannot_work(call: Call, fleet: Fleet, arguments: tuple[str, ...]) -> None:
    fleet.models["small"] = ready("small")
    assert call("bench", *arguments).exit_code == ExitCode.USAGE


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version").stdout == f"xgen-ray {__version__}\n"


@pytest.mark.parametrize(
    "command", ["ps", "load m", "unload m", "scale m --replicas 2", "logs m", "nodes", "drain n", "lift m"]
)
def test_a_wrong_key_ends_every_command_alike(call: Call, fleet: Fleet, command: str) -> None:
    result = call(*command.split(), env={"XGEN_RAY_API_KEY": "not-the-key"})
    assert result.exit_code == ExitCode.UNAUTHORISED
    assert "XGEN_RAY_API_KEY" in result.stderr
    assert "not-the-key" not in result.output


@pytest.mark.parametrize(
    "command",
    [
        "ps",
        "load m",
        "unload m",
        "scale m --replicas 2",
        "logs m",
        "nodes",
        "drain n",
        "lift m",
        "chat -m hi",
        "bench",
    ],
)
def test_no_server_ends_every_command_alike(call: Call, command: str) -> None:
    result = call(*command.split(), env={"XGEN_RAY_URL": "http://127.0.0.1:9"})
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "xgen-ray up" in result.stderr
    assert result.stdout == ""
