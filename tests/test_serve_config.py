"""A Serve config of ours is looked at as a whole, and each fault has its line and field."""

from pathlib import Path

import pytest
from ray.serve.schema import ServeDeploySchema

from xgen_ray.errors import ConfigError
from xgen_ray.serve_config import read_serve_config

GOOD = """\
http_options: {host: 127.0.0.1}
applications:
  - name: xgen-control
    import_path: deployments.app:control
    route_prefix: /api
    args:
      models:
        - model: hf:org/name
          name: llama
          pool: vllm
          options:
            context: 4096
        - model: ./llama.gguf
          name: llama
          pool: apu
  - name: xgen-router
    import_path: deployments.app:router
    args: {replicas: 1}
"""


def told(tmp_path: Path, text: str) -> list[str]:
    """What is said of a config with this text, without the file's name."""
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_serve_config(path, ServeDeploySchema)
    return [line.removeprefix(f"{path}:") for line in caught.value.message.splitlines()]


def test_a_good_one_is_given_back_with_our_arguments(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(GOOD)
    config = read_serve_config(path, ServeDeploySchema)
    assert config.control is not None
    assert [request.loaded_as for request in config.control.models] == ["llama@vllm", "llama@apu"]
    assert len(ServeDeploySchema.model_validate(config.content).applications) == 2


def test_the_files_of_keys_of_both_applications_are_named(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        GOOD.replace("args:\n", "args:\n      api_keys_file: /etc/control.yaml\n", 1).replace(
            "{replicas: 1}", "{api_keys_file: ~/router.yaml}"
        )
    )
    found = read_serve_config(path, ServeDeploySchema).key_files
    assert found == {Path("/etc/control.yaml"), Path.home() / "router.yaml"}


def test_applications_of_others_are_theirs(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("applications: [{name: x, import_path: 'a:b', route_prefix: /, args: {anything: 1}}]")
    assert read_serve_config(path, ServeDeploySchema).control is None


MODELS = "applications[0].args.models"


@pytest.mark.parametrize(
    ("instead", "of", "expected"),
    [
        ("contxt: 4096", "context: 4096", f"12: {MODELS}[0].options.contxt: Extra inputs are not permitted"),
        (
            "context: many",
            "context: 4096",
            f"12: {MODELS}[0].options.context: Input should be a valid intege",
        ),
        (
            "batch: 8\n            ubatch: 9",
            "context: 4096",
            f"13: {MODELS}[0].options.ubatch: ubatch 9 is mo",
        ),
        (
            "backend: vllm-cpu\n            gpus: [0]",
            "context: 4096",
            f"13: {MODELS}[0].options.gpus: it runs",
        ),
        ("pool: vllm", "pool: apu", f"13: {MODELS}[1]: it has the name of model 0, llama@vllm"),
        ("model: hf:org\n          nodes: [a]", "model: hf:org/name", f"8: {MODELS}[0].model: "),
        ("nam: llama", "name: llama\n          pool: apu", f"14: {MODELS}[1].nam: Extra inputs"),
        ("replicas: 0", "replicas: 1", "18: applications[1].args.replicas: Input should be greater than"),
        (
            "profiles: [{option: slots,\n        value: 0, reason: x, integrated: true}]\n      models:",
            "models:",
            "8: applications[0].args.profiles[0].value: slots cannot be 0",
        ),
        ("name: control", "name: xgen-control", "3: applications[0].name: it must be xgen-control"),
        ("host: 0.0.0.0", "host: 127.0.0.1", "6: applications[0].args: api_keys_file is missing"),
        (
            "host: 192.0.2.7",
            "host: 127.0.0.1",
            "1: http_options.host: Serve cannot listen on 192.0.2.7, only on 127.0.0.1 or on all IPv4",
        ),
        ("hots: 127.0.0.1", "host: 127.0.0.1", "6: applications[0].args: api_keys_file is missing"),
        (
            "import_pat: a",
            "import_path: deployments.app:router",
            "16: applications[1].import_path: Field requ",
        ),
        ("pool: vllm\n          name: twice", "pool: vllm", f"11: {MODELS}[0].name: it is already given in"),
    ],
)
def test_a_fault_has_its_line_and_field(tmp_path: Path, instead: str, of: str, expected: str) -> None:
    assert of in GOOD
    assert told(tmp_path, GOOD.replace(of, instead, 1))[0].startswith(expected)


def test_scaling_that_contradicts_itself_is_told_in_our_words(tmp_path: Path) -> None:
    wrong = GOOD.replace("pool: apu", "pool: apu\n          scaling: {min_replicas: 3, max_replicas: 2}")
    assert told(tmp_path, wrong) == [f"16: {MODELS}[1].scaling: min_replicas is 3, max_replicas only 2"]


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    wrong = (
        GOOD.replace("context: 4096", "contxt: 1")
        .replace("pool: apu", "pol: apu")
        .replace("{rep", "{r: 1, rep")
    )
    assert [line.partition(":")[0] for line in told(tmp_path, wrong)] == ["12", "15", "18"]
    many = "\n".join(f"      wrong{number}: 1" for number in range(20))
    lines = told(tmp_path, GOOD.replace("    args:\n", f"    args:\n{many}\n", 1))
    assert len(lines) == 11
    assert lines[-1] == "and 10 more"


def test_without_http_options_serve_listens_everywhere(tmp_path: Path) -> None:
    lines = told(tmp_path, GOOD.replace("http_options: {host: 127.0.0.1}\n", ""))
    assert all("api_keys_file is missing, and others can reach 0.0.0.0" in line for line in lines)
    assert len(lines) == 2


def test_traces_need_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = GOOD.replace("{replicas: 1}", "{replicas: 1, otlp_endpoint: 'http://127.0.0.1:4318'}")
    path = tmp_path / "fleet.yaml"
    path.write_text(traced)
    read_serve_config(path, ServeDeploySchema)
    monkeypatch.setattr("xgen_ray.api.tracing.find_spec", lambda name: None)
    place = "18: applications[1].args.otlp_endpoint"
    (line,) = told(tmp_path, traced)
    assert line.startswith(f"{place}: traces need the extra 'tracing': pip install 'xgen-ray[tracing]'")
    # What is no address is one fault, not two.
    (wrong,) = told(tmp_path, traced.replace("http://", ""))
    assert wrong.startswith(f"{place}: String should match pattern")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("applications: [", "1: it is no YAML: "),
        ("a: 1\n\tb: 2", "2: it is no YAML: "),
        ("", "1: Input should be a valid dictionary"),
        ("- 1", "1: Input should be a valid dictionary"),
        ("a: &a [*a]", "1: applications: Field required"),
    ],
)
def test_what_is_no_config_at_all(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in told(tmp_path, text)[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_serve_config(tmp_path / "none.yaml", ServeDeploySchema)
