"""What an operator may set, and what is refused before anything starts."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import ConfigError
from xgen_ray.placement import Engine, ProfileRow, ProfileSettings
from xgen_ray.settings import (
    ControlSettings,
    RouterSettings,
    engine_environment,
    parse_keys,
    read_api_keys,
    require_keys_when_exposed,
)


def keys_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_are_read_from_a_private_file(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "alice: sk-1\nbob: 42\n")
    assert read_api_keys(path) == (KeyEntry("alice", "sk-1"), KeyEntry("bob", "42"))


@pytest.mark.parametrize(
    "key", ["012345", "0x1F", "1_000", "1.50", "2026-11-28", "1e3", "12:30:45", "=", "off-x"]
)
def test_a_key_is_the_text_that_the_file_has(tmp_path: Path, key: str) -> None:
    for entry in (key, f"{{key: {key}}}", f'"{key}"'):
        assert [one.key for one in read_api_keys(keys_file(tmp_path, f"alice: {entry}\n"))] == [key]


@pytest.mark.parametrize(
    "key", ["", "~", "null", '""', "' '", "true", "yes", "off", "[sk-secret]", "!!int 5"]
)
def test_what_is_no_key_is_refused_by_its_name(tmp_path: Path, key: str) -> None:
    for entry in (key, f"{{key: {key}}}"):
        with pytest.raises(ConfigError, match="alice has no key that is text") as refused:
            read_api_keys(keys_file(tmp_path, f"alice: {entry}\n"))
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text", ["alice: *sk-secret", "alice: @sk-secret", 'alice: "sk-secret', "a: sk-secret: b"]
)
def test_what_is_no_yaml_is_refused_by_its_line_without_repeating_it(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"keys\.yaml:[12]: .* no YAML") as refused:
        read_api_keys(keys_file(tmp_path, text))
    assert "secret" not in str(refused.value)


def test_a_key_may_be_for_using_models_only(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "ops: {key: sk-1, role: manage}\napp: {key: sk-2, role: infer}\nold: 3\n")
    assert [(entry.name, entry.key, entry.role) for entry in read_api_keys(path)] == [
        ("ops", "sk-1", Role.MANAGE),
        ("app", "sk-2", Role.INFER),
        ("old", "3", Role.MANAGE),
    ]


@pytest.mark.parametrize(
    "entry",
    ["{secret: infer}", "{key: secret, for: a}", "{key: secret, role: secret}", "{key: secret, role: [a]}"],
)
def test_a_malformed_entry_is_refused_without_repeating_it(tmp_path: Path, entry: str) -> None:
    with pytest.raises(ConfigError, match="app") as refused:
        read_api_keys(keys_file(tmp_path, f"app: {entry}\n"))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("alice: sk-1", 0o644, "chmod 600"),
        ("- sk-1", 0o600, "mapping"),
        ("", 0o600, "mapping"),
        ("a: [", 0o600, "no YAML"),
        ("no: sk-1", 0o600, "name must be text"),
    ],
)
def test_a_bad_key_file_is_refused_with_what_to_do(tmp_path: Path, text: str, mode: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_api_keys(keys_file(tmp_path, text, mode))


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_api_keys(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("pair", ["sk-secret", "=sk-secret", "alice=", ""])
def test_a_malformed_key_is_refused_without_repeating_it(pair: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys([pair])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    require_keys_when_exposed(host, has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu-box.example", ""])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match="API keys"):
        require_keys_when_exposed(host, has_keys=False)
    require_keys_when_exposed(host, has_keys=True)


def test_engines_see_devices_and_paths_but_no_secret() -> None:
    environ = {
        "PATH": "/bin",
        "HIP_VISIBLE_DEVICES": "1",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
        "HF_TOKEN": "hf_x",
        "AMD_API_KEY": "x",
        "RAY_ADDRESS": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    assert engine_environment(environ) == {
        "PATH": "/bin",
        "HIP_VISIBLE_DEVICES": "1",
        "HSA_OVERRIDE_GFX_VERSION": "11.0.0",
    }


@given(
    st.dictionaries(st.sampled_from(["CUDA_", "LC_", "", "X_"]).map(lambda p: p + "SECRET_KEY"), st.text())
)
def test_nothing_that_is_named_like_a_secret_passes(environ: dict[str, str]) -> None:
    assert engine_environment(environ) == {}


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (ControlSettings, {"model_dir": "/models"}),
        (ControlSettings, {"models": [{"model": "a.gguf", "options": {"context": -1}}]}),
        (ControlSettings, {"drain_s": 0}),
        (RouterSettings, {"replicas": 0}),
    ],
)
def test_a_wrong_field_is_refused_by_name(
    settings: type[ControlSettings | RouterSettings], fields: dict[str, object]
) -> None:
    with pytest.raises(ValidationError) as caught:
        settings.model_validate(fields)
    assert caught.value.errors()[0]["loc"][0] == next(iter(fields))


def test_a_home_directory_is_expanded() -> None:
    assert ControlSettings.model_validate({"state_dir": "~/x"}).state_dir == Path.home() / "x"


def test_costs_are_of_devices_that_tags_know() -> None:
    assert ControlSettings(node_costs={"gfx1151": 1, "sm_90": 4, "cpu": 0.2}).node_costs["sm_90"] == 4
    for name, cost in (("h100", 4), ("GFX1151", 1), ("sm_90", 0), ("cpu", -1)):
        with pytest.raises(ValidationError, match=name):
            ControlSettings.model_validate({"node_costs": {name: cost}})


def test_the_rows_of_profiles_have_the_fields_of_those_in_the_code() -> None:
    told = {
        "option": "memory_bytes",
        "value": 18 << 30,
        "reason": "x",
        "gfx": ["gfx1151"],
        "engines": ["vllm"],
    }
    (row,) = ControlSettings.model_validate({"profiles": [told]}).profiles
    assert row.row() == ProfileRow(
        "memory_bytes", 18 << 30, "x", engines=frozenset({Engine.VLLM}), gfx=frozenset({"gfx1151"})
    )
    assert [field.name for field in dataclasses.fields(ProfileRow)] == list(ProfileSettings.model_fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"device_apis": ["vulkan"], "gfx": ["gfx1151"], "integrated": True},
        {"option": "slots", "value": 2, "integrated": True},
        {"option": "slots", "value": 2, "engines": ["llama-server"]},
        {"option": "fit", "value": False, "engines": ["llama-server"]},
        {"option": "enforce_eager", "value": True, "engines": ["vllm"]},
        {"option": "gpu_layers", "value": 0, "engines": ["llama-server"], "tasks": ["embed"]},
        {"option": "batch", "value": 512, "engines": ["llama-server", "llama-cpp-python"]},
    ],
)
def test_rows_of_profiles_that_can_hold(fields: dict[str, object]) -> None:
    ProfileSettings.model_validate({"option": "memory_bytes", "value": 18 << 30, "reason": "x", **fields})


@pytest.mark.parametrize(
    ("fields", "where", "says"),
    [
        ({"memory": 1}, "memory", "Extra inputs"),
        ({"reason": ""}, "reason", "at least 1 character"),
        ({"option": "context", "value": 4096}, "option", "'memory_bytes', 'slots'"),
        ({"engines": ["ollama"]}, "engines", "'llama-server'"),
        ({"gfx": ["1151"]}, "gfx", "gfx"),
        ({"value": "18GiB"}, "value", "18 GiB are 19327352832"),
        ({"value": 18}, "value", "18 GiB are 19327352832"),
        ({"value": -1}, "value", "it counts bytes"),
        ({"value": True}, "value", "it counts bytes"),
        ({"option": "slots", "value": 0, "integrated": True}, "value", "slots cannot be 0"),
        ({"option": "slots", "value": True, "integrated": True}, "value", "slots cannot be True"),
        ({"option": "gpu_layers", "value": 12}, "value", "with 0"),
        ({"option": "gpu_layers", "value": False}, "value", "with 0"),
        ({"device_apis": ["cpu"]}, "device_apis", "no backend for GPUs has device_apis cpu"),
        ({"engines": ["vllm"], "device_apis": ["vulkan"]}, "device_apis", "holds nowhere"),
        ({"engines": ["vllm"], "gpu_types": ["apple_mps"]}, "gpu_types", "holds nowhere"),
        ({"device_apis": ["cuda"], "gfx": ["gfx1151"]}, "gfx", "device_apis cuda and gfx gfx1151"),
        (
            {"option": "slots", "value": 2, "engines": ["llama-cpp-python"], "tasks": ["rerank"]},
            "tasks",
            "engines llama-cpp-python and tasks rerank",
        ),
        ({"option": "slots", "value": 2}, "option", "llama-cpp-python serves one request at a time"),
        ({"option": "fit", "value": False, "device_apis": ["rocm"]}, "option", "for vllm-rocm too"),
    ],
)
def test_a_row_of_profiles_that_cannot_hold_is_refused_by_its_field(
    fields: dict[str, object], where: str, says: str
) -> None:
    row = {"option": "memory_bytes", "value": 18 << 30, "reason": "x", **fields}
    with pytest.raises(ValidationError) as caught:
        ControlSettings.model_validate({"profiles": [row]})
    (error,) = caught.value.errors()
    place = (*error["loc"], *error.get("ctx", {}).get("within", ()))
    assert place[:3] == ("profiles", 0, where)
    assert says in error["msg"]


def test_node_types_are_told_in_the_words_of_rays_own_configuration() -> None:
    told = {"resources": {"CPU": 8, "gfx1151": 1}, "labels": {"xgen-ray/ram": "64g"}, "max_workers": 2}
    kind = ControlSettings.model_validate({"node_types": {"amd": told}}).node_types["amd"]
    assert (kind.resources["gfx1151"], kind.max_workers) == (1, 2)
    wrong: object
    for wrong in ({"resources": {}}, {"labels": {}}, {**told, "min_workers": 1}, {**told, "max_workers": 0}):
        with pytest.raises(ValidationError):
            ControlSettings.model_validate({"node_types": {"amd": wrong}})
