import os
from pathlib import Path

import pytest

from tests.models.build import write_gguf, write_hf, write_split
from xgen_ray.errors import BadModelFile, InvalidRequest, ModelNotFound, PathNotAllowed
from xgen_ray.models import inspect, resolve_local


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def test_files_and_folders_inside(root: Path) -> None:
    file = write_gguf(root / "m.gguf")
    folder = write_hf(root / "deep" / "folder")
    assert resolve_local(file, [root]) == file
    assert resolve_local(str(folder), [root]) == folder
    assert resolve_local(root / "deep" / ".." / "m.gguf", [root]) == file


def test_a_relative_path_is_looked_for_in_each_directory(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    file = write_gguf(root / "m.gguf")
    assert resolve_local("m.gguf", [other, root]) == file


def test_a_relative_path_may_be_below_the_working_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(root / "m.gguf")
    monkeypatch.chdir(root.parent)
    assert resolve_local("models/m.gguf", [root]) == file


def test_a_root_that_is_itself_a_link(root: Path, tmp_path: Path) -> None:
    write_gguf(root / "m.gguf")
    (tmp_path / "link").symlink_to(root)
    assert resolve_local(tmp_path / "link" / "m.gguf", [tmp_path / "link"]) == tmp_path / "link" / "m.gguf"
    assert resolve_local("m.gguf", [tmp_path / "link"]).samefile(root / "m.gguf")


@pytest.mark.parametrize(
    "path", ["../outside/m.gguf", "../outside/none.gguf", "../../etc/passwd", "/etc/passwd", "/none"]
)
def test_outside_reads_the_same_whether_it_exists_or_not(root: Path, outside: Path, path: str) -> None:
    write_gguf(outside / "m.gguf")
    with pytest.raises(PathNotAllowed) as caught:
        resolve_local(path, [root])
    assert caught.value.message == (
        f"{path} is outside the model directories ({root}). Put the model into one of them."
    )


def test_a_neighbour_with_the_same_beginning_is_outside(root: Path, tmp_path: Path) -> None:
    (tmp_path / "models-private").mkdir()
    file = write_gguf(tmp_path / "models-private" / "m.gguf")
    with pytest.raises(PathNotAllowed):
        resolve_local(file, [root])


def test_without_directories_nothing_is_allowed(root: Path) -> None:
    with pytest.raises(PathNotAllowed, match=r"\(none\)"):
        resolve_local(write_gguf(root / "m.gguf"), [])


class TestLinks:
    def test_out_of_the_directory_are_refused(self, root: Path, outside: Path) -> None:
        (root / "m.gguf").symlink_to(write_gguf(outside / "m.gguf"))
        (root / "none.gguf").symlink_to(outside / "none.gguf")
        (root / "folder").symlink_to(outside)
        for name in ("m.gguf", "none.gguf", "folder", "folder/m.gguf"):
            with pytest.raises(PathNotAllowed):
                resolve_local(root / name, [root])

    def test_of_a_split_part_are_refused(self, root: Path, outside: Path) -> None:
        parts = write_split(root, "m", 2)
        parts[1].rename(outside / "part")
        parts[1].symlink_to(outside / "part")
        with pytest.raises(PathNotAllowed, match=r"because of m-00002-of-00002\.gguf"):
            resolve_local(parts[0], [root])

    @pytest.mark.parametrize("name", ["tokenizer.json", "1_Pooling"])
    def test_in_a_folder_are_refused(self, root: Path, outside: Path, name: str) -> None:
        folder = write_hf(root / "m")
        (folder / name).symlink_to(outside)
        with pytest.raises(PathNotAllowed, match=f"because of {name}"):
            resolve_local(folder, [root])

    def test_of_a_cache_snapshot_to_its_blobs_are_fine(self, root: Path) -> None:
        blobs = root / "models--o--n" / "blobs"
        snapshot = root / "models--o--n" / "snapshots" / "0123"
        write_hf(snapshot)
        blobs.mkdir()
        for file in list(snapshot.iterdir()):
            file.rename(blobs / file.name)
            file.symlink_to(Path("../../blobs") / file.name)
        resolved = resolve_local(snapshot, [root])
        assert resolved == snapshot
        assert inspect(resolved).layer_count == 4

    def test_in_circles_end(self, root: Path) -> None:
        (root / "loop").symlink_to(root / "loop")
        with pytest.raises(ModelNotFound):
            resolve_local(root / "loop", [root])
        folder = write_hf(root / "m")
        (folder / "again").symlink_to(folder)
        assert resolve_local(folder, [root]) == folder


class TestNothingThere:
    def test_lists_near_names(self, root: Path) -> None:
        write_gguf(root / "SmolLM2-135M.gguf")
        with pytest.raises(ModelNotFound, match=r"Did you mean SmolLM2-135M\.gguf\?"):
            resolve_local(root / "smollm2-135.gguf", [root])

    def test_lists_no_names_from_outside(self, root: Path, outside: Path) -> None:
        write_gguf(outside / "secret.gguf")
        (root / "link").symlink_to(outside)
        with pytest.raises(PathNotAllowed) as caught:
            resolve_local(root / "link" / "secre.gguf", [root])
        assert "secret" not in caught.value.message

    def test_says_where_it_looked(self, root: Path) -> None:
        with pytest.raises(ModelNotFound, match=f"Model directories: {root}"):
            resolve_local("org/name", [root])

    @pytest.mark.parametrize("path", ["", "a\0b"])
    def test_refuses_what_is_no_path(self, root: Path, path: str) -> None:
        with pytest.raises(InvalidRequest):
            resolve_local(path, [root])

    def test_a_name_that_is_too_long(self, root: Path) -> None:
        with pytest.raises(ModelNotFound):
            resolve_local(root / ("x" * 300), [root])


def test_a_folder_with_far_too_many_files_is_refused(root: Path) -> None:
    folder = root / "home"
    folder.mkdir()
    source = folder / "0"
    source.touch()
    for number in range(1, 5_001):
        os.link(source, folder / str(number))
    with pytest.raises(BadModelFile, match="more than 5000 files"):
        resolve_local(folder, [root])
