"""What is offered for loading: whole models inside the directories, and nothing else."""

from pathlib import Path

import pytest

from xgen_ray.models import shelf
from xgen_ray.models.shelf import MAX_DEPTH, read_shelf
from xgen_ray.models.types import ModelFormat


def put(path: Path, size: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def names(*roots: Path) -> dict[str, int]:
    return {model.name: model.size_bytes for model in read_shelf(roots).models}


def test_files_and_folders_are_found_by_what_they_are(tmp_path: Path) -> None:
    gguf = put(tmp_path / "Qwen3-8B.Q4_K_M.gguf", 30)
    put(tmp_path / "llama" / "config.json")
    put(tmp_path / "llama" / "model-00001-of-00002.safetensors", 20)
    put(tmp_path / "llama" / "model-00002-of-00002.safetensors", 5)
    put(tmp_path / "notes.txt")
    one, two = read_shelf([tmp_path]).models
    assert (one.path, one.name, one.format, one.size_bytes) == (
        gguf,
        "qwen3-8b.q4_k_m",
        ModelFormat.GGUF,
        30,
    )
    assert (two.path, two.name, two.format, two.size_bytes) == (
        tmp_path / "llama",
        "llama",
        ModelFormat.SAFETENSORS,
        25,
    )


def test_a_split_model_is_one_and_only_when_it_is_whole(tmp_path: Path) -> None:
    put(tmp_path / "big-00001-of-00002.gguf", 7)
    assert names(tmp_path) == {}
    put(tmp_path / "big-00002-of-00002.gguf", 8)
    assert names(tmp_path) == {"big": 15}


@pytest.mark.parametrize("file", ["mmproj-model.gguf", ".cache/hidden.gguf", "config.json", "w.safetensors"])
def test_what_is_no_model_is_not_offered(tmp_path: Path, file: str) -> None:
    put(tmp_path / file)
    assert names(tmp_path) == {}


def test_links_count_only_as_long_as_they_stay_inside(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", put(tmp_path / "outside" / "secret.gguf")
    inside = put(root / "blobs" / "abc", 12)
    (root / "linked.gguf").symlink_to(inside)
    (root / "stolen.gguf").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "dangling.gguf").symlink_to(root / "gone")
    assert names(root) == {"linked": 12}


def test_roots_in_one_another_give_every_model_once(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "a.gguf")
    assert len(read_shelf([tmp_path, tmp_path / "sub", tmp_path]).models) == 1


def test_a_root_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = read_shelf([tmp_path / "nowhere"])
    assert found.models == ()
    assert "nowhere cannot be read" in found.left_out[0]


def test_the_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path.joinpath(*"abcdefgh"[: MAX_DEPTH + 1])
    put(deep / "deep.gguf")
    put(deep.parent / "near.gguf")
    assert names(tmp_path) == {"near": 10}
    monkeypatch.setattr(shelf, "MAX_ENTRIES", 3)
    for number in range(4):
        put(tmp_path / f"{number}.gguf")
    assert "more than 3 files" in read_shelf([tmp_path]).left_out[0]
