import os
import struct
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.build import TOOLS_TEMPLATE, write_gguf, write_split
from xgen_ray.errors import BadModelFile, ModelNotFound
from xgen_ray.models import ModelFacts, ModelFormat, ModelTask, read_gguf
from xgen_ray.models.gguf_header import MAX_KEYS, MAX_TENSORS, Skipped, read_header

SAMPLE = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct-q4_1.gguf"

# Loose: a loaded machine must not fail these; a reader that believes a lying count would.
BOUND_S = 5.0


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: GGUFValueType, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def strings(values: list[str]) -> bytes:
    return struct.pack("<IQ", GGUFValueType.STRING, len(values)) + b"".join(text(value) for value in values)


def tensor(dimensions: list[int], kind: int, offset: int, name: str = "t") -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


ARCHITECTURE = key("general.architecture", GGUFValueType.STRING, text("llama"))


def gguf(
    keys: list[bytes], tensors: list[bytes], data: int, *, counts: tuple[int, int] | None = None
) -> bytes:
    """A GGUF file by hand, with ``data`` bytes behind its header."""
    counts = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class TestTheSampleModel:
    def test_says_of_itself(self) -> None:
        facts = read_gguf(SAMPLE)
        assert facts == ModelFacts(
            format=ModelFormat.GGUF,
            path=str(SAMPLE),
            files=(str(SAMPLE),),
            weight_bytes=96_576_768,
            architecture="llama",
            name="Smollm2 135M 8k Lc100K Mix1 Ep2",
            parameter_count=134_515_008,
            quantization="Q4_1",
            layer_count=30,
            embedding_length=576,
            head_count=9,
            kv_heads=(3,) * 30,
            key_length=64,
            value_length=64,
            context_length=8192,
            vocabulary_size=49_152,
            task=ModelTask.GENERATE,
            has_chat_template=True,
            chat_template_supports_tools=False,
        )

    def test_is_read_in_a_moment(self) -> None:
        started = time.perf_counter()
        read_gguf(SAMPLE)
        assert time.perf_counter() - started < 1.0

    def test_fills_its_file(self) -> None:
        header = read_header(SAMPLE)
        last = max(tensor.offset + (tensor.size_bytes or 0) for tensor in header.tensors)
        assert header.data_start + last == SAMPLE.stat().st_size


class TestAgainstTheLibrary:
    def test_every_key_and_tensor_agrees(self, tmp_path: Path) -> None:
        path = write_gguf(
            tmp_path / "m.gguf",
            general__name="ünïcode",
            general__file_type=15,
            attention__head_count_kv=[2, 2, 0, 4],
            attention__causal=False,
            rope__scales=[0.5, 1.5],
            tokenizer__ggml__tokens=["a", "", "bc"],
        )
        header = read_header(path)
        reader = GGUFReader(path)
        expected = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        assert header.fields.keys() == expected.keys()
        for name, value in header.fields.items():
            contents = expected[name].contents()
            if isinstance(value, Skipped):
                assert value.kind == expected[name].types[-1]
                assert value.count == len(contents)
            else:
                assert (list(value) if isinstance(value, tuple) else value) == contents
        assert header.data_start == reader.data_offset
        ours = [(t.quantization, t.element_count, t.size_bytes, t.offset) for t in header.tensors]
        theirs = [
            (t.tensor_type, t.n_elements, t.n_bytes, t.data_offset - reader.data_offset)
            for t in reader.tensors
        ]
        assert ours == theirs


class TestWhatAFileSays:
    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, {"kv_heads": (2,) * 4, "head_count": 8, "key_length": 8, "context_length": 2048}),
            ({"attention__head_count_kv": None}, {"kv_heads": (8,) * 4}),
            ({"attention__head_count_kv": [2, 0, 2, 0]}, {"kv_heads": (2, 0, 2, 0)}),
            (
                {"attention__head_count": [0, 8, 4, 8], "attention__head_count_kv": None},
                {"kv_heads": (0, 8, 4, 8)},
            ),
            ({"attention__head_count": [0, 8, 4, 8]}, {"head_count": 8, "key_length": 8}),
            ({"full_attention_interval": 2}, {"kv_heads": (0, 2, 0, 2)}),
            (
                {"attention__key_length": 128, "attention__value_length": 96},
                {"key_length": 128, "value_length": 96},
            ),
            ({"attention__sliding_window": 512}, {"sliding_window": 512}),
            ({"attention__sliding_window": 0}, {"sliding_window": None}),
            ({"expert_count": 16}, {"expert_count": 16}),
            ({"vocab_size": 777}, {"vocabulary_size": 777}),
            ({"tokenizer__ggml__tokens": ["a", "b", "c"]}, {"vocabulary_size": 3}),
            ({"block_count": None}, {"layer_count": None, "kv_heads": None}),
            ({"embedding_length": None}, {"embedding_length": None, "key_length": None}),
            ({"context_length": None}, {"context_length": None}),
            ({"general__name": "N"}, {"name": "N"}),
            ({"general__file_type": 15}, {"quantization": "Q4_K_M"}),
            ({"general__file_type": 1}, {"quantization": "F16"}),
            ({"general__file_type": 0}, {"quantization": "F32"}),
            ({"general__file_type": 1024 + 7}, {"quantization": "Q8_0"}),
            ({"general__file_type": 999}, {"quantization": "F32"}),
            ({}, {"quantization": "F32", "parameter_count": 64, "weight_bytes": 256}),
            ({"pooling_type": 1}, {"task": ModelTask.EMBED, "pooling": "mean"}),
            ({"pooling_type": 2}, {"task": ModelTask.EMBED, "pooling": "cls"}),
            ({"pooling_type": 3}, {"task": ModelTask.EMBED, "pooling": "last"}),
            ({"pooling_type": 4}, {"task": ModelTask.RERANK, "pooling": "rank"}),
            ({"pooling_type": 0}, {"task": ModelTask.GENERATE, "pooling": None}),
            ({"pooling_type": 77}, {"task": ModelTask.GENERATE, "pooling": None}),
            ({}, {"has_chat_template": False, "chat_template_supports_tools": False}),
            (
                {"tokenizer__chat_template": TOOLS_TEMPLATE},
                {"has_chat_template": True, "chat_template_supports_tools": True},
            ),
            (
                {"tokenizer__chat_template": "{{ messages }} 'tools' message.tools my_tools"},
                {"has_chat_template": True, "chat_template_supports_tools": False},
            ),
            (
                {"tokenizer__chat_template": "{{ m }}", "tokenizer__chat_template__tool_use": "{{ x }}"},
                {"chat_template_supports_tools": True},
            ),
        ],
    )
    def test_becomes_facts(self, tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any]) -> None:
        facts = read_gguf(write_gguf(tmp_path / "m.gguf", **keys))
        assert {name: getattr(facts, name) for name in expected} == expected

    @pytest.mark.parametrize(
        "architecture", ["bert", "nomic-bert", "jina-bert-v2", "gemma-embedding", "t5encoder"]
    )
    def test_some_architectures_only_embed(self, tmp_path: Path, architecture: str) -> None:
        assert read_gguf(write_gguf(tmp_path / "m.gguf", architecture)).task is ModelTask.EMBED

    @pytest.mark.parametrize(
        ("architecture", "further", "keys", "expected"),
        [
            ("bert", ["cls.weight", "cls.output.weight"], {}, (ModelTask.RERANK, None)),
            ("jina-bert-v2", ["cls.weight"], {}, (ModelTask.RERANK, None)),
            ("bert", ["cls.weight"], {"pooling_type": 1}, (ModelTask.EMBED, "mean")),
            (
                "modern-bert",
                ["cls.weight", "cls.norm.weight", "cls.output.weight"],
                {},
                (ModelTask.RERANK, None),
            ),
            ("modern-bert", ["cls.weight", "cls.norm.weight"], {}, (ModelTask.EMBED, None)),
            ("llama", ["cls.output.weight"], {}, (ModelTask.GENERATE, None)),
        ],
    )
    def test_an_encoder_with_a_head_that_scores_reranks(
        self,
        tmp_path: Path,
        architecture: str,
        further: list[str],
        keys: dict[str, Any],
        expected: tuple[ModelTask, str | None],
    ) -> None:
        facts = read_gguf(write_gguf(tmp_path / "m.gguf", architecture, further=further, **keys))
        assert (facts.task, facts.pooling) == expected

    def test_an_architecture_that_nobody_knows_is_recorded(self, tmp_path: Path) -> None:
        facts = read_gguf(write_gguf(tmp_path / "m.gguf", "from-the-future"))
        assert (facts.architecture, facts.layer_count) == ("from-the-future", 4)

    def test_a_tensor_type_that_nobody_knows_counts_by_the_file(self, tmp_path: Path) -> None:
        content = gguf([ARCHITECTURE], [tensor([32], 4711, 0), tensor([32], 0, 999, "u")], 4096)
        facts = read_gguf(write(tmp_path / "m.gguf", content))
        assert (facts.weight_bytes, facts.quantization) == (4096, "F32")


class TestASplitModel:
    def test_is_read_whole_from_any_part(self, tmp_path: Path) -> None:
        parts = write_split(tmp_path, "m", 3)
        one = read_gguf(parts[0])
        assert one == read_gguf(parts[2])
        assert one.path == str(parts[0])
        assert one.files == tuple(str(part) for part in parts)
        assert (one.weight_bytes, one.parameter_count) == (3 * 256, 3 * 64)

    def test_names_the_missing_part(self, tmp_path: Path) -> None:
        parts = write_split(tmp_path, "m", 3)
        parts[1].unlink()
        with pytest.raises(BadModelFile, match=r"3 parts, of which 1 are missing: m-00002-of-00003\.gguf"):
            read_gguf(parts[0])

    def test_refuses_parts_in_each_others_place(self, tmp_path: Path) -> None:
        parts = write_split(tmp_path, "m", 2)
        parts[1].write_bytes(parts[0].read_bytes())
        with pytest.raises(BadModelFile, match=r"part 0 of 2 .* part 1 of 2 by its name"):
            read_gguf(parts[0])

    def test_refuses_a_part_without_its_name(self, tmp_path: Path) -> None:
        lone = write_split(tmp_path, "m", 2)[1].rename(tmp_path / "renamed.gguf")
        with pytest.raises(BadModelFile, match="one of 2 parts"):
            read_gguf(lone)

    def test_refuses_a_truncated_part(self, tmp_path: Path) -> None:
        parts = write_split(tmp_path, "m", 2)
        os.truncate(parts[1], parts[1].stat().st_size - 100)
        with pytest.raises(BadModelFile, match=r"m-00002-of-00002.gguf .*truncated"):
            read_gguf(parts[0])

    def test_refuses_an_absurd_number_of_parts_at_once(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "m-00001-of-99999.gguf")
        with pytest.raises(BadModelFile, match="one of 99999 parts"):
            read_gguf(path)


def lying(length: int) -> bytes:
    return text("k") + struct.pack("<IQ", GGUFValueType.STRING, length)


def array(kind: int, count: int) -> bytes:
    return text("k") + struct.pack("<IIQ", GGUFValueType.ARRAY, kind, count)


GOOD_TENSOR = tensor([32], 0, 0)
HOSTILE = {
    "empty": (b"", "it has 0 bytes"),
    "three bytes": (b"GGU", "it has 3 bytes"),
    "magic alone": (b"GGUF", "truncated"),
    "other magic": (b"PK\3\4" + bytes(100), r"starts with b'PK\\x03\\x04'"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
    "version of tomorrow": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version is 9"),
    "other byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order"),
    "all zero": (b"GGUF" + bytes(500), "version is 0"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), "truncated"),
    "2^63 keys": (gguf([], [], 0, counts=(1, 2**63)), "9223372036854775808 keys"),
    "2^63 tensors": (gguf([], [], 0, counts=(2**63, 1)), "9223372036854775808 tensors"),
    "most keys, no bytes": (gguf([], [], 0, counts=(0, MAX_KEYS)), "truncated"),
    "most tensors, no bytes": (gguf([ARCHITECTURE], [], 0, counts=(MAX_TENSORS, 1)), "truncated"),
    "key of 2^63 bytes": (gguf([struct.pack("<Q", 2**63)], [], 64), "key name claims 9223372036854775808"),
    "string of 2^63 bytes": (gguf([lying(2**63)], [], 64), "claims 9223372036854775808 bytes"),
    "string of 2^64-1 bytes": (gguf([lying(2**64 - 1)], [], 64), "claims 18446744073709551615 bytes"),
    "array of 2^63 strings": (gguf([array(8, 2**63)], [], 64), "holds 9223372036854775808 strings"),
    "array of more strings than bytes": (gguf([array(8, 1_000_000)], [], 64), "truncated"),
    "array of 2^63 numbers": (gguf([array(4, 2**63)], [], 64), "truncated"),
    "array of few missing numbers": (gguf([array(4, 100)], [], 0), "truncated"),
    "string in array of 2^64-1": (gguf([array(8, 1) + b"\xff" * 8], [], 64), "truncated or corrupt"),
    "array of arrays": (gguf([array(9, 1)], [], 64), "array of arrays"),
    "unknown type": (gguf([text("k") + struct.pack("<I", 99)], [], 64), "unknown type 99"),
    "unknown array type": (gguf([array(99, 1)], [], 64), "unknown type 99"),
    "key twice": (gguf([ARCHITECTURE, ARCHITECTURE], [GOOD_TENSOR], 128), "appears twice"),
    "no architecture": (gguf([], [GOOD_TENSOR], 128), "does not name its architecture"),
    "no tensors": (gguf([ARCHITECTURE], [], 0), "holds no tensors"),
    "5 dimensions": (gguf([ARCHITECTURE], [tensor([1] * 5, 0, 0)], 128), "5 dimensions"),
    "2^32-1 dimensions": (gguf([ARCHITECTURE], [text("t") + b"\xff" * 4], 4096), "4294967295 dimensions"),
    "negative dimension": (gguf([ARCHITECTURE], [tensor([2**64 - 1], 0, 0)], 128), "dimensions"),
    "overflowing dimensions": (gguf([ARCHITECTURE], [tensor([2**32, 2**32], 0, 0)], 128), "dimensions"),
    "offset beyond the file": (gguf([ARCHITECTURE], [tensor([32], 0, 2**62)], 128), "its place"),
    "overlapping tensors": (
        gguf([ARCHITECTURE], [GOOD_TENSOR, tensor([32], 0, 0, "u")], 128),
        "128 is its place",
    ),
    "weights cut off": (gguf([ARCHITECTURE], [GOOD_TENSOR], 127), r"header promises \d+ bytes, the file has"),
    "row not of whole blocks": (gguf([ARCHITECTURE], [tensor([33], 2, 0)], 128), "not a multiple of 32"),
    "alignment 0": (
        gguf([ARCHITECTURE, key("general.alignment", GGUFValueType.UINT32, bytes(4))], [GOOD_TENSOR], 128),
        "alignment is 0",
    ),
    "alignment of text": (
        gguf([ARCHITECTURE, key("general.alignment", GGUFValueType.STRING, text("x"))], [GOOD_TENSOR], 128),
        "alignment is x",
    ),
}


class TestHostileFiles:
    @pytest.mark.skipif(sys.byteorder != "little", reason="the files are little-endian")
    @pytest.mark.parametrize("name", HOSTILE)
    def test_are_refused_with_the_reason(self, tmp_path: Path, name: str) -> None:
        content, reason = HOSTILE[name]
        path = write(tmp_path / "m.gguf", content)
        started = time.perf_counter()
        with pytest.raises(BadModelFile, match=reason) as caught:
            read_gguf(path)
        assert time.perf_counter() - started < BOUND_S
        assert caught.value.path == str(path)
        assert str(path) in caught.value.message

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [
            ({"block_count": "four"}, "'four', not a plausible count"),
            ({"block_count": 2**32 - 1}, "4294967295 layers"),
            ({"block_count": True}, "not a plausible count"),
            ({"context_length": [2048, -1]}, "'-1', not a plausible count"),
            ({"attention__head_count_kv": [2, 2]}, "2 entries for 4 layers"),
        ],
    )
    def test_values_that_cannot_be_are_refused(
        self, tmp_path: Path, keys: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(BadModelFile, match=reason):
            read_gguf(write_gguf(tmp_path / "m.gguf", **keys))

    def test_every_truncation_is_refused(self, tmp_path: Path) -> None:
        whole = gguf([ARCHITECTURE, key("a", GGUFValueType.ARRAY, strings(["x", "yy"]))], [GOOD_TENSOR], 128)
        path = tmp_path / "m.gguf"
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(BadModelFile):
                read_gguf(path)
        path.write_bytes(whole)
        assert read_gguf(path).weight_bytes == 128

    def test_a_large_vocabulary_costs_little_time_and_no_memory(self, tmp_path: Path) -> None:
        def model(size: int) -> Path:
            tokens = strings([f"token-{number}" for number in range(size)])
            numbers = struct.pack("<IQ", GGUFValueType.FLOAT32, size) + bytes(4 * size)
            keys = [
                ARCHITECTURE,
                key("tokenizer.ggml.tokens", GGUFValueType.ARRAY, tokens),
                key("tokenizer.ggml.merges", GGUFValueType.ARRAY, tokens),
                key("tokenizer.ggml.scores", GGUFValueType.ARRAY, numbers),
            ]
            return write(tmp_path / f"{size}.gguf", gguf(keys, [GOOD_TENSOR], 128))

        large, smaller = model(250_000), model(50_000)
        started = time.perf_counter()
        facts = read_gguf(large)
        assert time.perf_counter() - started < BOUND_S / 2
        assert facts.vocabulary_size == 250_000
        # Tracing is slow. One object for each string would be 5 MiB already.
        tracemalloc.start()
        read_gguf(smaller)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * 2**20

    def test_a_sparse_terabyte_of_promises_is_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", gguf([], [], 0, counts=(MAX_TENSORS, MAX_KEYS)))
        os.truncate(path, 2**40)
        started = time.perf_counter()
        with pytest.raises(BadModelFile):
            read_gguf(path)
        assert time.perf_counter() - started < BOUND_S

    def test_much_text_is_refused_before_it_is_kept(self, tmp_path: Path) -> None:
        keys = [key(f"k{number}", GGUFValueType.STRING, text("x" * 2**20)) for number in range(40)]
        with pytest.raises(BadModelFile, match="keys and texts exceed"):
            read_gguf(write(tmp_path / "m.gguf", gguf(keys, [], 0)))

    def test_one_huge_text_is_stepped_over(self, tmp_path: Path) -> None:
        keys = [ARCHITECTURE, key("tokenizer.huggingface.json", GGUFValueType.STRING, text("x" * 3 * 2**20))]
        path = write(tmp_path / "m.gguf", gguf(keys, [GOOD_TENSOR], 128))
        assert read_header(path).fields["tokenizer.huggingface.json"] == Skipped(
            GGUFValueType.STRING, 3 * 2**20
        )


class TestWhatIsNotAFile:
    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(BadModelFile, match="is a directory"):
            read_gguf(tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        pipe = tmp_path / "m.gguf"
        os.mkfifo(pipe)
        caught: list[BaseException] = []

        def read() -> None:
            try:
                read_gguf(pipe)
            except BadModelFile as error:
                caught.append(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert "named pipe" in str(caught[0])

    def test_a_device(self) -> None:
        with pytest.raises(BadModelFile, match="is a device"):
            read_gguf("/dev/zero")

    def test_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="does not exist"):
            read_gguf(tmp_path / "m.gguf")

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match="too long"):
            read_gguf(tmp_path / ("m" * 300))

    def test_a_link_to_itself(self, tmp_path: Path) -> None:
        loop = tmp_path / "m.gguf"
        loop.symlink_to(loop)
        with pytest.raises(ModelNotFound):
            read_gguf(loop)

    def test_a_file_without_permission(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "m.gguf")
        path.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with pytest.raises(BadModelFile, match="permission denied"):
                read_gguf(path)
        finally:
            os.seteuid(user)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_gguf(
        tmp_path_factory.mktemp("fuzz") / "m.gguf",
        general__name="victim",
        general__file_type=2,
        attention__head_count_kv=[2, 2, 2, 2],
        tokenizer__ggml__tokens=["a", "b", "c"],
        tokenizer__chat_template=TOOLS_TEMPLATE,
    )
    return path.read_bytes()


class TestMutatedFiles:
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_give_facts_or_a_reason_and_nothing_else(
        self, tmp_path: Path, victim: bytes, data: st.DataObject
    ) -> None:
        content = bytearray(victim)
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(content) - 1))
            patch = data.draw(
                st.one_of(
                    st.binary(min_size=1, max_size=8),
                    st.sampled_from([2**63, 2**64 - 1, 2**32 - 1, 2**31, 0]).map(
                        lambda n: struct.pack("<Q", n)
                    ),
                )
            )
            content[at : at + len(patch)] = patch
        cut = data.draw(st.integers(0, 20))
        path = tmp_path / "m.gguf"
        path.write_bytes(content[: len(content) - cut])
        started = time.perf_counter()
        try:
            facts = read_gguf(path)
        except BadModelFile:
            pass
        else:
            assert isinstance(facts, ModelFacts)
            assert 0 <= facts.weight_bytes <= len(content)
        assert time.perf_counter() - started < BOUND_S
