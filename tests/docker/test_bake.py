"""docker-bake.hcl, the build matrix: that it names what exists, and says each default once."""

import re
from typing import Any

import hcl2
import pytest
import yaml

from tests.docker.dockerfiles import FOLDER, IMAGES, REPOSITORY, read

IGNORED = REPOSITORY / ".dockerignore"
WORKFLOW = REPOSITORY / ".github" / "workflows" / "images.yaml"


def _plain(value: Any) -> Any:
    """Without the quotes that the parser keeps around names and texts."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.strip('"') if isinstance(value, str) else value


def blocks(kind: str) -> dict[str, dict[str, Any]]:
    with (FOLDER / "docker-bake.hcl").open() as file:
        content = hcl2.load(file)
    return {name: body for block in content[kind] for name, body in _plain(block).items()}


def with_inherited(targets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """A target as bake sees it: its own fields over those that it inherits; maps are merged."""
    result: dict[str, Any] = {}
    for one in [*targets[name].get("inherits", []), None]:
        fields = with_inherited(targets, one) if one else targets[name]
        for key, value in fields.items():
            result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


def test_every_image_is_in_the_matrix() -> None:
    assert blocks("group")["default"]["targets"] == [name.removeprefix("Dockerfile.") for name in IMAGES]


@pytest.mark.parametrize("name", IMAGES)
def test_a_target_names_what_exists(name: str) -> None:
    targets = blocks("target")
    target = with_inherited(targets, name.removeprefix("Dockerfile."))
    assert target["dockerfile"] == f"docker/{name}"
    file = read(name)
    assert target["target"] in file.stages
    declared = {*file.arguments, *(v.partition("=")[0] for s in file.stages.values() for v in s.all("ARG"))}
    node = read("Dockerfile.node")
    shared = {v.partition("=")[0] for v in node.stages["node"].all("ARG")}
    assert set(target["args"]) <= declared | shared
    bases = {stage.base for stage in file.stages.values()}
    brought = set(target["contexts"])
    assert {base for base in bases if "$" not in base} - set(file.stages) <= brought
    for context in target["contexts"].values():
        if context.startswith("target:"):
            inner = with_inherited(targets, context.removeprefix("target:"))
            assert inner["target"] in node.stages


def test_a_default_is_said_once_or_the_same() -> None:
    defaults = {name: body["default"] for name, body in blocks("variable").items()}
    for name in (*IMAGES, "Dockerfile.node"):
        for argument, default in read(name).arguments.items():
            said = defaults.get(argument)
            if said is not None and default is not None:
                assert said == default, f"{argument} in {name}"


def test_every_variable_reaches_a_build() -> None:
    text = (FOLDER / "docker-bake.hcl").read_text()
    for name in blocks("variable"):
        uses = re.findall(rf"\b{name}\b", text)
        assert len(uses) > 1, name


def test_source_of_llama_cpp_is_a_whole_commit() -> None:
    variables = blocks("variable")
    assert re.fullmatch(r"[0-9a-f]{40}", variables["LLAMA_CPP_COMMIT"]["default"])
    assert variables["LLAMA_CPP_SOURCE"]["default"].endswith("#${LLAMA_CPP_COMMIT}")


def test_the_workflow_builds_the_whole_matrix() -> None:
    text = WORKFLOW.read_text()
    assert "docker/docker-bake.hcl" in text
    for name in blocks("group")["default"]["targets"]:
        assert re.search(rf"\b{name}\b", text), name


def test_the_workflow_builds_what_changes_an_image() -> None:
    """Every folder that the builds see."""
    kept = [line.removeprefix("!") for line in IGNORED.read_text().splitlines() if line.startswith("!")]
    # YAML takes the key `on` for a truth.
    paths = yaml.safe_load(WORKFLOW.read_text())[True]["pull_request"]["paths"]
    assert {f"{name}/**" for name in kept if (REPOSITORY / name).is_dir()} <= set(paths)
