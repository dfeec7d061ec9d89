import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.build import write_gguf, write_hf, write_split
from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models import ModelFormat, inspect


def test_a_gguf_file_by_its_content(tmp_path: Path) -> None:
    assert inspect(write_gguf(tmp_path / "no-suffix")).format is ModelFormat.GGUF


def test_a_folder_with_one_gguf(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    write_gguf(tmp_path / "mmproj-m.gguf", "clip")
    assert inspect(tmp_path).path == str(path)


def test_a_folder_with_one_split_gguf(tmp_path: Path) -> None:
    parts = write_split(tmp_path, "m", 2)
    assert inspect(str(tmp_path)).path == str(parts[0])


def test_a_folder_with_several_lists_them(tmp_path: Path) -> None:
    write_split(tmp_path, "big", 2)
    write_gguf(tmp_path / "small.gguf")
    with pytest.raises(BadModelFile, match=r"2 GGUF models: big-00001-of-00002\.gguf, small\.gguf\."):
        inspect(tmp_path)


def test_a_huggingface_folder_even_with_gguf_in_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    assert inspect(write_hf(tmp_path)).format is ModelFormat.SAFETENSORS


def test_gguf_beside_a_bare_configuration(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert inspect(tmp_path).format is ModelFormat.GGUF


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.gguf", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("m.gguf", b"<html>not found</html>", "starts with b'<htm'"),
        ("m.safetensors", b"\0" * 64, "Name its folder"),
        ("pytorch_model.bin", b"\x80\x02", "may run code"),
        ("notes.txt", b"hello", "not a usable GGUF file"),
    ],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModelFile, match=reason):
        inspect(tmp_path / name)


def test_nothing_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        inspect(tmp_path / "none")
    with pytest.raises(BadModelFile, match="not a model folder"):
        inspect(tmp_path)


def test_who_opens_no_gguf_waits_for_no_numpy() -> None:
    program = "import sys, xgen_ray.models; print({'numpy', 'gguf'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
