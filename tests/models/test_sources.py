import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgen_ray.errors import InvalidRequest
from xgen_ray.models import ModelSource, default_name, parse_source
from xgen_ray.models.sources import is_safe_filename
from xgen_ray.schema import NAME_PATTERN


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("/models/m.gguf", ModelSource(path="/models/m.gguf")),
        ("models/m.gguf", ModelSource(path="models/m.gguf")),
        ("org/name", ModelSource(path="org/name")),
        ("hf:Qwen/Qwen3-8B", ModelSource(repo="Qwen/Qwen3-8B")),
        ("hf:o/n@v1.0", ModelSource(repo="o/n", revision="v1.0")),
        ("hf:o/n@refs/pr/4", ModelSource(repo="o/n", revision="refs/pr/4")),
        ("hf:o/n:m.gguf", ModelSource(repo="o/n", filename="m.gguf")),
        ("hf:o/n@main:Q4/m.gguf", ModelSource(repo="o/n", revision="main", filename="Q4/m.gguf")),
    ],
)
def test_a_name_is_read_and_written_back(text: str, source: ModelSource) -> None:
    assert parse_source(text) == source
    assert str(source) == text
    assert source.is_local == (not text.startswith("hf:"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "x" * 1025, "a\0b", "a\nb"),
        *(
            "hf:",
            "hf:name",
            "hf:/name",
            "hf:org/",
            "hf:a/b/c",
            "hf:../x",
            "hf:o/..",
            "hf:o/a--b",
            "hf:o/a b",
            "hf:-o/n",
        ),
        *("hf:o/n@", "hf:o/n@../x", "hf:o/n@/x", "hf:o/n@a..b", "hf:o/n@a b", "hf:o/n@-x", "hf:o/n@a//b"),
        *(
            "hf:o/n:",
            "hf:o/n:m.bin",
            "hf:o/n:../m.gguf",
            "hf:o/n:/m.gguf",
            "hf:o/n:a\\m.gguf",
            "hf:o/n:a//m.gguf",
        ),
        *("https://example.org/m.gguf", "s3://bucket/m", "ollama:llama3", "HF:o/n"),
    ],
)
def test_other_names_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidRequest, match="hf:org/name") as caught:
        parse_source(text)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/models/SmolLM2-135M.Q4_1.gguf", "smollm2-135m.q4_1"),
        ("/models/Big-00001-of-00003.gguf", "big"),
        ("/models/Qwen3-8B/", "qwen3-8b"),
        ("hf:Qwen/Qwen3-8B", "qwen3-8b"),
        ("hf:o/n@v1:Q4/My Model.gguf", "my-model"),
        ("/cache/models--Qwen--Qwen3-8B/snapshots/0123abcd", "qwen3-8b"),
        ("/cache/models--o--n/snapshots/0123abcd/file.gguf", "file"),
        ("/models/한국어.gguf", "model"),
        ("/", "model"),
        (".", "model"),
        ("..gguf", "model"),
    ],
)
def test_a_default_name_comes_from_the_file_or_the_repository(text: str, name: str) -> None:
    assert default_name(parse_source(text)) == name


@given(st.text(min_size=1, max_size=200))
def test_a_default_name_can_always_be_served(text: str) -> None:
    assert re.match(NAME_PATTERN, default_name(ModelSource(path=text)))


@given(st.text(max_size=100) | st.from_regex(r"hf:[\w./@:-]{0,40}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        source = parse_source(text)
    except InvalidRequest:
        return
    assert str(source) == text
    assert source.filename is None or is_safe_filename(source.filename)
    assert ".." not in (source.revision or "")


@pytest.mark.parametrize("name", ["a", "a/b", ".gitattributes", "a b.json", "1_Pooling/config.json"])
def test_safe_file_names(name: str) -> None:
    assert is_safe_filename(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "/a", "../a", "a/../b", "a/./b", "a//b", "a/", "a\\b", "a\0b"]
)
def test_unsafe_file_names(name: str) -> None:
    assert not is_safe_filename(name)
