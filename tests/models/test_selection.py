import pytest

from xgen_ray.errors import BadModelFile, DownloadFailed, InvalidRequest, ModelNotFound
from xgen_ray.models.selection import Selection, select
from xgen_ray.models.sources import parse_source


def choose(source: str, *names: str) -> Selection:
    return select(parse_source(source), dict.fromkeys(names, 10))


SAFETENSORS = ("config.json", "model.safetensors", "tokenizer.json", "README.md")


class TestSafetensors:
    def test_weights_with_their_companions_and_no_code(self) -> None:
        selection = choose(
            "hf:o/n",
            *SAFETENSORS,
            *("tokenizer.model", "vocab.txt", "merges.txt", "chat_template.jinja", "generation_config.json"),
            *("pytorch_model.bin", "modeling.py", "model.pt", "onnx/config.json", "original/params.json"),
            *("1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "logo.png"),
        )
        assert set(selection.files) == {
            *(
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer.model",
                "vocab.txt",
                "merges.txt",
            ),
            *(
                "chat_template.jinja",
                "generation_config.json",
                "1_Pooling/config.json",
                "2_Dense/model.safetensors",
            ),
        }
        assert (selection.entry, selection.total_bytes) == (None, 100)

    def test_shards_but_no_second_copy_of_the_weights(self) -> None:
        shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        copies = ("consolidated.safetensors", "model.fp16.safetensors", "original/model.safetensors")
        files = choose("hf:o/n", "config.json", *shards, *copies).files
        assert set(files) == {"config.json", *shards}

    def test_shards_of_any_name_that_an_index_may_name(self) -> None:
        usual = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")
        further = ("model_extra_tensors.safetensors", "mtp.safetensors")
        others = ("consolidated-00001-of-00001.safetensors", "adapter_model.safetensors")
        files = choose("hf:o/n", "config.json", *usual, *further, *others, "onnx/model.safetensors").files
        assert set(files) == {"config.json", *usual, *further}

    def test_unusual_names_where_there_are_no_others(self) -> None:
        assert "odd.safetensors" in choose("hf:o/n", "config.json", "odd.safetensors").files

    def test_before_gguf_in_the_same_repository(self) -> None:
        assert choose("hf:o/n", *SAFETENSORS, "m.gguf").entry is None


class TestGGUF:
    def test_the_one_that_is_named(self) -> None:
        selection = choose("hf:o/n:sub/a.gguf", "sub/a.gguf", "b.gguf", *SAFETENSORS)
        assert (list(selection.files), selection.entry) == (["sub/a.gguf"], "sub/a.gguf")

    @pytest.mark.parametrize("part", [1, 3])
    def test_all_parts_of_a_split_one(self, part: int) -> None:
        parts = [f"q/m-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
        selection = choose(f"hf:o/n:q/m-{part:05d}-of-00003.gguf", *parts)
        assert (list(selection.files), selection.entry) == (parts, parts[0])

    def test_names_missing_parts(self) -> None:
        with pytest.raises(BadModelFile, match=r"1 of the 2 parts .* missing: m-00002-of-00002\.gguf"):
            choose("hf:o/n", "m-00001-of-00002.gguf")

    def test_names_near_ones(self) -> None:
        with pytest.raises(ModelNotFound, match=r"Did you mean model-q4\.gguf\?"):
            choose("hf:o/n:model-q5.gguf", "model-q4.gguf", "README.md")

    def test_the_only_one(self) -> None:
        selection = choose("hf:o/n", "m.gguf", "mmproj-m.gguf", "config.json")
        assert (selection.entry, selection.why) == (
            "m.gguf",
            "m.gguf (the only GGUF model in the repository)",
        )

    def test_the_preferred_one_of_several(self) -> None:
        selection = choose("hf:o/n", "m-Q8_0.gguf", "m-q4_k_m.gguf", "m-Q2_K.gguf")
        assert selection.entry == "m-q4_k_m.gguf"
        assert "Q4_K_M, of 3 GGUF models" in selection.why

    def test_several_without_a_preferred_one_are_listed(self) -> None:
        with pytest.raises(
            InvalidRequest, match=r"2 GGUF models: a\.gguf, b\.gguf\. Name one: hf:o/n:a\.gguf"
        ):
            choose("hf:o/n", "a.gguf", "b.gguf")
        with pytest.raises(InvalidRequest, match="2 GGUF models"):
            choose("hf:o/n", "a-Q4_K_M.gguf", "b-Q4_K_M.gguf")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["pytorch_model.bin", "config.json"], "runs code"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter"),
        (["README.md"], "neither safetensors nor GGUF"),
        ([], "neither safetensors nor GGUF"),
    ],
)
def test_repositories_without_a_model_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(BadModelFile, match=reason):
        choose("hf:o/n", *names)


@pytest.mark.parametrize(
    "name", ["../../.ssh/authorized_keys", "/etc/cron.d/x", "a/../../b.json", "a\\..\\b"]
)
def test_a_name_that_points_out_of_its_folder_condemns_the_repository(name: str) -> None:
    with pytest.raises(DownloadFailed, match="points out of its folder"):
        choose("hf:o/n", *SAFETENSORS, name)
