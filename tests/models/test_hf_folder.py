import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.build import LLAMA_CONFIG, ONE_TENSOR, TOOLS_TEMPLATE, safetensors, write_hf
from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models import ModelFacts, ModelFormat, ModelTask, read_hf_folder

WITHOUT_KV = {key: value for key, value in LLAMA_CONFIG.items() if key != "num_key_value_heads"}
BERT = {
    "architectures": ["BertModel"],
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
}
SCORER = {**BERT, "architectures": ["BertForSequenceClassification"]}


def test_a_folder_says_of_itself(tmp_path: Path) -> None:
    assert read_hf_folder(write_hf(tmp_path / "m")) == ModelFacts(
        format=ModelFormat.SAFETENSORS,
        path=str(tmp_path / "m"),
        files=(str(tmp_path / "m" / "model.safetensors"),),
        weight_bytes=128,
        architecture="LlamaForCausalLM",
        parameter_count=64,
        quantization="bfloat16",
        layer_count=4,
        embedding_length=64,
        head_count=8,
        kv_heads=(2, 2, 2, 2),
        key_length=8,
        value_length=8,
        context_length=2048,
        vocabulary_size=1000,
        task=ModelTask.GENERATE,
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (WITHOUT_KV, {"kv_heads": (8,) * 4}),
        ({**WITHOUT_KV, "multi_query": True}, {"kv_heads": (1,) * 4}),
        ({**WITHOUT_KV, "multi_query": True, "new_decoder_architecture": True}, {"kv_heads": (8,) * 4}),
        ({**LLAMA_CONFIG, "num_key_value_heads": [1, 2, 4, 8]}, {"kv_heads": (1, 2, 4, 8)}),
        ({**LLAMA_CONFIG, "head_dim": 128}, {"key_length": 128, "value_length": 128}),
        (
            {**LLAMA_CONFIG, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
            {"kv_heads": (1,) * 4, "key_length": 576, "value_length": 0},
        ),
        (
            {**LLAMA_CONFIG, "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
            {"kv_heads": (0, 0, 0, 2)},
        ),
        (
            {**LLAMA_CONFIG, "layer_types": ["sliding_attention", "full_attention"] * 2},
            {"kv_heads": (2,) * 4},
        ),
        ({**LLAMA_CONFIG, "layer_types": [["odd"], None, 3, {}]}, {"kv_heads": (0,) * 4}),
        ({**LLAMA_CONFIG, "sliding_window": 4096}, {"sliding_window": 4096}),
        ({**LLAMA_CONFIG, "sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": None}),
        ({**LLAMA_CONFIG, "sliding_window": None}, {"sliding_window": None}),
        ({**LLAMA_CONFIG, "num_local_experts": 8}, {"expert_count": 8}),
        ({**LLAMA_CONFIG, "n_routed_experts": 256}, {"expert_count": 256}),
        ({**LLAMA_CONFIG, "torch_dtype": None, "dtype": "float16"}, {"quantization": "float16"}),
        ({**LLAMA_CONFIG, "torch_dtype": None}, {"quantization": "BF16"}),
        (
            {**LLAMA_CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4}},
            {"quantization": "awq", "parameter_count": None},
        ),
        (
            {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 99},
            {"layer_count": 2, "context_length": 99},
        ),
        (
            {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {**LLAMA_CONFIG}},
            {"architecture": "Gemma3ForConditionalGeneration", "layer_count": 4, "kv_heads": (2,) * 4},
        ),
        ({"thinker_config": {"text_config": {**LLAMA_CONFIG}}}, {"layer_count": 4, "embedding_length": 64}),
        ({}, {"layer_count": None, "kv_heads": None, "context_length": None, "architecture": None}),
        ({"model_type": "llama"}, {"architecture": "llama", "task": ModelTask.GENERATE}),
        (BERT, {"task": ModelTask.EMBED, "pooling": None}),
        ({**BERT, "architectures": ["XLMRobertaForMaskedLM"]}, {"task": ModelTask.EMBED}),
        ({**BERT, "architectures": ["GPT2LMHeadModel"]}, {"task": ModelTask.GENERATE}),
        (
            {**BERT, "architectures": ["ChatGLMModel"], "auto_map": {"AutoModelForCausalLM": "x.Y"}},
            {"task": ModelTask.GENERATE},
        ),
        ({**SCORER, "id2label": {"0": "LABEL_0"}}, {"task": ModelTask.RERANK}),
        ({**SCORER, "num_labels": 1}, {"task": ModelTask.RERANK}),
    ],
)
def test_a_configuration_becomes_facts(
    tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]
) -> None:
    facts = read_hf_folder(write_hf(tmp_path / "m", config))
    assert {name: getattr(facts, name) for name in expected} == expected


class TestSentenceTransformers:
    @pytest.mark.parametrize(
        ("modes", "pooling"),
        [
            ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
            ({"pooling_mode_cls_token": True}, "cls"),
            ({"pooling_mode_lasttoken": True}, "last"),
            ({}, None),
        ],
    )
    def test_embed_with_their_pooling(
        self, tmp_path: Path, modes: dict[str, bool], pooling: str | None
    ) -> None:
        folder = write_hf(tmp_path / "m", modules=[{"idx": 0}], sentence_bert_config={"max_seq_length": 256})
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        facts = read_hf_folder(folder)
        assert (facts.task, facts.pooling, facts.context_length) == (ModelTask.EMBED, pooling, 256)

    def test_need_no_pooling_folder(self, tmp_path: Path) -> None:
        facts = read_hf_folder(write_hf(tmp_path / "m", modules=[]))
        assert (facts.task, facts.pooling, facts.context_length) == (ModelTask.EMBED, None, 2048)


class TestChatTemplates:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("{{ messages }}", (True, False)),
            (TOOLS_TEMPLATE, (True, True)),
            (
                [{"name": "default", "template": "{{ m }}"}, {"name": "tool_use", "template": "{{ m }}"}],
                (True, True),
            ),
            ([{"name": "default", "template": "{{ m }}"}], (True, False)),
            ("  ", (False, False)),
            (None, (False, False)),
            ([17, {"template": 3}], (False, False)),
        ],
    )
    def test_in_the_tokenizer_configuration(
        self, tmp_path: Path, value: object, expected: tuple[bool, bool]
    ) -> None:
        facts = read_hf_folder(write_hf(tmp_path / "m", tokenizer_config={"chat_template": value}))
        assert (facts.has_chat_template, facts.chat_template_supports_tools) == expected

    def test_in_files_of_their_own(self, tmp_path: Path) -> None:
        jinja = write_hf(tmp_path / "jinja")
        (jinja / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
        assert read_hf_folder(jinja).chat_template_supports_tools
        assert read_hf_folder(
            write_hf(tmp_path / "json", chat_template={"chat_template": "x"})
        ).has_chat_template


class TestShards:
    def write(self, folder: Path, weight_map: object, *shards: str) -> Path:
        write_hf(folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        for shard in shards:
            (folder / shard).write_bytes(safetensors(ONE_TENSOR))
        return folder

    def test_are_counted_together(self, tmp_path: Path) -> None:
        folder = self.write(tmp_path / "m", {"a": "s1.safetensors", "b": "s2.safetensors"}, *SHARDS)
        facts = read_hf_folder(folder)
        assert (facts.weight_bytes, facts.parameter_count) == (256, 128)
        assert facts.files == tuple(str(folder / name) for name in SHARDS)

    def test_that_are_missing_are_named(self, tmp_path: Path) -> None:
        folder = self.write(tmp_path / "m", {"a": "s1.safetensors", "b": "s2.safetensors"}, SHARDS[0])
        with pytest.raises(BadModelFile, match=r"lacks 1 of 2 shards: s2\.safetensors"):
            read_hf_folder(folder)

    @pytest.mark.parametrize(
        "name", ["../up.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "a\\b", "a\0b"]
    )
    def test_elsewhere_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(BadModelFile, match="not a file beside it"):
            read_hf_folder(self.write(tmp_path / "m", {"a": name}))

    @pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
    def test_without_a_map_are_refused(self, tmp_path: Path, weight_map: object) -> None:
        with pytest.raises(BadModelFile, match="no weight_map"):
            read_hf_folder(self.write(tmp_path / "m", weight_map))

    def test_without_an_index_are_all_counted(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "model.safetensors").rename(folder / "odd-1.safetensors")
        (folder / "consolidated.safetensors").write_bytes(safetensors(ONE_TENSOR))
        assert read_hf_folder(folder).files == (str(folder / "odd-1.safetensors"),)


SHARDS = ("s1.safetensors", "s2.safetensors")


def raw(header: object, data: int = 0) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + bytes(data)


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


# Written out: Python takes half a second to turn numbers of that size into text.
MANY_DIMENSIONS = b'{"t":{"dtype":"F32","shape":[%b],"data_offsets":[0,8]}}' % b",".join(
    [b"1" + b"0" * 4000] * 2000
)
HOSTILE_WEIGHTS = {
    "empty": (b"", "it has 0 bytes"),
    "7 bytes": (b"\0" * 7, "it has 7 bytes"),
    "length of 2^63": (struct.pack("<Q", 2**63) + b"{}", "claims 9223372036854775808 bytes"),
    "length beyond the file": (struct.pack("<Q", 100) + b"{}", "claims 100 bytes in a file of 10"),
    "no JSON": (raw(b"nonsense"), "not valid JSON"),
    "deep JSON": (raw(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "a list": (raw([1]), "JSON list"),
    "no tensors": (raw({"__metadata__": {}}), "no tensors"),
    "entry of text": (raw({"t": "x"}), "not an object"),
    "no dtype": (raw(one(None), 8), "lacks a dtype"),
    "shape of text": (raw(one(shape="ab"), 8), "lacks a dtype, a shape"),
    "negative shape": (raw(one(shape=[-2]), 8), "lacks a dtype, a shape"),
    "boolean shape": (raw(one(shape=[True]), 8), "lacks a dtype, a shape"),
    "huge shape": (raw(one(shape=[2**40, 2**40]), 8), "has more than"),
    "very many dimensions": (raw(MANY_DIMENSIONS, 8), "has more than"),
    "three offsets": (raw(one(offsets=[0, 4, 8]), 8), "offsets"),
    "backward offsets": (raw(one(offsets=[8, 0]), 8), "lies from 8 to 0"),
    "size that lies": (raw(one(shape=[3]), 8), "3 elements of F32 in 8 bytes"),
    "cut off": (raw(one(), 7), "truncated: its header promises"),
    "trailing bytes": (raw(one(), 9), "not its own"),
}


class TestHostileFolders:
    @pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
    def test_weights_are_refused_with_the_reason(self, tmp_path: Path, name: str) -> None:
        content, reason = HOSTILE_WEIGHTS[name]
        folder = write_hf(tmp_path / "m")
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(BadModelFile, match=reason):
            read_hf_folder(folder)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({**LLAMA_CONFIG, "num_hidden_layers": "four"}, "'four', not a plausible count"),
            ({**LLAMA_CONFIG, "num_hidden_layers": 10**9}, "1000000000 layers"),
            ({**LLAMA_CONFIG, "hidden_size": -1}, "not a plausible count"),
            ({**LLAMA_CONFIG, "hidden_size": 1e300}, "not a plausible count"),
            ({**LLAMA_CONFIG, "hidden_size": True}, "not a plausible count"),
            ({**LLAMA_CONFIG, "num_key_value_heads": [1]}, "1 of 4 layers"),
            (SCORER, "classifier with 2 labels"),
            ({**SCORER, "id2label": {"0": "a", "1": "b", "2": "c"}}, "classifier with 3 labels"),
        ],
    )
    def test_configurations_that_cannot_be_are_refused(
        self, tmp_path: Path, config: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(BadModelFile, match=reason):
            read_hf_folder(write_hf(tmp_path / "m", config))

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' + b"9" * 5000 + b"}"])
    def test_configurations_that_are_no_json_object(self, tmp_path: Path, content: bytes) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "config.json").write_bytes(content)
        with pytest.raises(BadModelFile, match=r"config\.json"):
            read_hf_folder(folder)

    def test_a_huge_configuration(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m")
        os.truncate(folder / "config.json", 2**40)
        with pytest.raises(BadModelFile, match="1099511627776 bytes"):
            read_hf_folder(folder)

    def test_a_configuration_that_is_a_pipe(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        with pytest.raises(BadModelFile, match="named pipe"):
            read_hf_folder(folder)

    def test_no_configuration(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "config.json").unlink()
        with pytest.raises(BadModelFile, match=r"no config\.json"):
            read_hf_folder(folder)

    def test_an_adapter(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m", adapter_config={})
        (folder / "config.json").unlink()
        with pytest.raises(BadModelFile, match="LoRA adapter"):
            read_hf_folder(folder)

    def test_no_weights(self, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "model.safetensors").unlink()
        with pytest.raises(BadModelFile, match="no safetensors weights"):
            read_hf_folder(folder)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
    def test_only_pickles(self, tmp_path: Path, name: str) -> None:
        folder = write_hf(tmp_path / "m")
        (folder / "model.safetensors").rename(folder / name)
        with pytest.raises(BadModelFile, match=rf"only as {name}: .*runs code.*Convert"):
            read_hf_folder(folder)

    def test_nothing_and_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound):
            read_hf_folder(tmp_path / "none")
        (tmp_path / "file").touch()
        with pytest.raises(BadModelFile, match="is a file"):
            read_hf_folder(tmp_path / "file")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *LLAMA_CONFIG,
        *(
            "text_config",
            "layer_types",
            "kv_lora_rank",
            "qk_rope_head_dim",
            "quantization_config",
            "id2label",
        ),
        *("auto_map", "sliding_window", "head_dim", "num_experts", "num_labels", "multi_query"),
    ]
)


class TestAnyFolder:
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changes=st.dictionaries(KEYS, JSON, max_size=4), weights=JSON | st.none(), tokenizer=JSON)
    def test_gives_facts_or_a_reason(
        self, tmp_path: Path, changes: dict[str, object], weights: object, tokenizer: object
    ) -> None:
        folder = write_hf(
            tmp_path / "m", {**LLAMA_CONFIG, **changes}, tokenizer_config={"chat_template": tokenizer}
        )
        if weights is not None:
            (folder / "model.safetensors").write_bytes(raw(one(offsets=weights), 8))
        with contextlib.suppress(BadModelFile):
            assert isinstance(read_hf_folder(folder), ModelFacts)
