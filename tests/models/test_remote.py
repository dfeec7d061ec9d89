import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.hub import Announced, Repo, Sparse, StandInHub
from tests.models.build import LLAMA_CONFIG, TOOLS_TEMPLATE, safetensors, write_gguf, write_split
from xgen_ray.errors import BadModelFile, DownloadFailed, InvalidRequest, ModelNotFound, XgenRayError
from xgen_ray.models import (
    ModelFacts,
    ModelTask,
    download,
    inspect,
    inspect_remote,
    parse_source,
    survey_remote,
)

MIB = 2**20
SAMPLE = Path(__file__).parents[2] / "models" / "smollm2-135m-instruct-q4_1.gguf"
BIG = "big.F16.gguf"
Ask = Callable[..., ModelFacts]


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub().running() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def ask(hub: StandInHub, cache: Path) -> Ask:
    def ask(source: str, **options: Any) -> ModelFacts:
        given = {"cache_dir": cache, "timeout_s": 5.0, "deadline_s": 20.0, **options}
        return inspect_remote(parse_source(source), endpoint=hub.endpoint, **given)

    return ask


@pytest.fixture
def same_as_downloaded(hub: StandInHub, cache: Path, ask: Ask) -> Ask:
    """The facts from afar, once they have proven equal to those after a real download."""

    def check(source: str) -> ModelFacts:
        facts = ask(source)
        assert not cache.exists(), "looking has written something"
        assert inspect(download(parse_source(source), cache, endpoint=hub.endpoint)) == facts
        return facts

    return check


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sparse]:
    """A GGUF of 640 MiB, its vocabulary of 60,000 tokens included: a sparse file, and the same for a hub."""
    path = tmp_path_factory.mktemp("big") / BIG
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(40)
    writer.add_context_length(8192)
    writer.add_embedding_length(4096)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_chat_template(TOOLS_TEMPLATE)
    writer.add_token_list([f"token-{number}-of-this-vocabulary" for number in range(60_000)])
    for number in range(40):
        writer.add_tensor_info(f"blk.{number}.ffn_up.weight", (2048, 4096), np.dtype(np.float16), 16 * MIB)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = path.read_bytes()
    size = len(head) + -len(head) % 32 + 40 * 16 * MIB
    os.truncate(path, size)
    return path, Sparse(size, head)


def sharded(**extra: bytes) -> dict[str, bytes | Announced]:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files: dict[str, bytes | Announced] = {
        "config.json": json.dumps(LLAMA_CONFIG).encode(),
        shards[0]: safetensors({"a": ("BF16", [300_000], 600_000)}),
        shards[1]: safetensors({"b": ("BF16", [2], 4)}),
        "model.safetensors.index.json": json.dumps(
            {"weight_map": dict(zip("ab", shards, strict=True))}
        ).encode(),
        "tokenizer_config.json": json.dumps({"chat_template": TOOLS_TEMPLATE}).encode(),
        "tokenizer.json": b"{" + b" " * 300_000 + b"}",
        "pytorch_model.bin": b"pickle",
    }
    return {**files, **extra}


class TestTheSameAsAfterADownload:
    def test_a_gguf_file(self, hub: StandInHub, same_as_downloaded: Ask) -> None:
        hub.repos["o/n"] = Repo({"sample.gguf": SAMPLE.read_bytes(), "README.md": b"hello"})
        facts = same_as_downloaded("hf:o/n")
        assert facts.layer_count == 30
        assert facts.has_chat_template

    def test_a_split_file_by_the_headers_of_all_parts(
        self, hub: StandInHub, same_as_downloaded: Ask, tmp_path: Path
    ) -> None:
        hub.repos["o/n"] = Repo(
            {f"q/{path.name}": path.read_bytes() for path in write_split(tmp_path, "m", 3)}
        )
        facts = same_as_downloaded("hf:o/n:q/m-00002-of-00003.gguf")
        assert (len(facts.files), facts.weight_bytes) == (3, 3 * 64 * 4)

    def test_a_sharded_huggingface_folder(self, hub: StandInHub, same_as_downloaded: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        facts = same_as_downloaded("hf:o/n")
        assert (facts.weight_bytes, facts.task) == (600_004, ModelTask.GENERATE)
        assert facts.chat_template_supports_tools

    def test_a_sentence_embedding_folder(self, hub: StandInHub, same_as_downloaded: Ask) -> None:
        extra = {
            "modules.json": b"{}",
            "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
            "sentence_bert_config.json": b'{"max_seq_length": 256}',
            "2_Dense/model.safetensors": safetensors({"d": ("F32", [1], 4)}),
        }
        hub.repos["o/n"] = Repo(sharded(**extra))
        facts = same_as_downloaded("hf:o/n")
        assert (facts.task, facts.pooling, facts.context_length) == (ModelTask.EMBED, "cls", 256)

    def test_a_commit(self, hub: StandInHub, same_as_downloaded: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        same_as_downloaded(f"hf:o/n@{hub.repos['o/n'].commit}")

    def test_the_choice_among_several(
        self, hub: StandInHub, same_as_downloaded: Ask, tmp_path: Path, cache: Path
    ) -> None:
        content = write_gguf(tmp_path / "any.gguf").read_bytes()
        hub.repos["o/n"] = Repo({"m.Q8_0.gguf": content, "m.Q4_K_M.gguf": content, "mmproj-m.gguf": b"no"})
        facts = same_as_downloaded("hf:o/n")
        assert facts.path == str(
            cache / "models--o--n" / "snapshots" / hub.repos["o/n"].commit / "m.Q4_K_M.gguf"
        )

    def test_without_a_cache_the_place_in_one(self, hub: StandInHub) -> None:
        hub.repos["o/n"] = Repo(sharded())
        facts = inspect_remote(parse_source("hf:o/n"), endpoint=hub.endpoint)
        assert facts.path == f"models--o--n/snapshots/{hub.repos['o/n'].commit}"


class TestFewBytes:
    def test_a_large_gguf_costs_its_header(
        self, hub: StandInHub, ask: Ask, big: tuple[Path, Sparse], cache: Path
    ) -> None:
        local, remote = big
        hub.repos["o/n"] = Repo({BIG: remote})
        facts = ask("hf:o/n")
        expected = inspect(local)
        assert (facts.weight_bytes, facts.vocabulary_size) == (640 * MIB, 60_000)
        place = str(cache / "models--o--n" / "snapshots" / hub.repos["o/n"].commit / BIG)
        assert (facts.path, facts.files) == (place, (place,))
        values = {name: getattr(facts, name) for name in facts.__slots__ if name not in ("path", "files")}
        assert values == {name: getattr(expected, name) for name in values}
        assert len(remote.head) > 2 * MIB
        assert len(remote.head) <= hub.served_bytes[BIG] < len(remote.head) + 4 * MIB
        # The head, and what follows in growing blocks; nothing twice.
        assert len(hub.requests("GET", "/storage/")) <= 4

    def test_a_folder_costs_headers_and_what_is_read_of_it(self, hub: StandInHub, ask: Ask) -> None:
        size = 400 * MIB
        shard = "model.safetensors"
        text = json.dumps({"a": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        head = len(text).to_bytes(8, "little") + text
        hub.repos["o/n"] = Repo(
            {
                "config.json": json.dumps(LLAMA_CONFIG).encode(),
                shard: Sparse(len(head) + size, head),
                "tokenizer.json": b" " * MIB,
            }
        )
        facts = ask("hf:o/n")
        assert (facts.weight_bytes, facts.parameter_count) == (size, size // 2)
        assert sum(hub.served_bytes.values()) < MIB
        assert not hub.requests("GET", "tokenizer.json")

    def test_what_a_download_would_bring(self, hub: StandInHub) -> None:
        hub.repos["o/n"] = Repo(sharded())
        model = survey_remote(parse_source("hf:o/n"), endpoint=hub.endpoint)
        wanted = {name: hub.repos["o/n"].size(name) for name in sharded() if name != "pytorch_model.bin"}
        assert (model.commit, model.selection.files) == (hub.repos["o/n"].commit, wanted)
        assert model.download_bytes == sum(wanted.values())
        assert "2 safetensors files" in model.selection.why


class TestRefusals:
    def test_what_is_not_there(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        with pytest.raises(ModelNotFound, match="has no repository o/none"):
            ask("hf:o/none")
        with pytest.raises(ModelNotFound, match="no revision v9"):
            ask("hf:o/n@v9")
        with pytest.raises(ModelNotFound, match=r"no file x\.gguf"):
            ask("hf:o/n:x.gguf")

    def test_gated_and_private(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/gated"] = Repo(sharded(), gated=True)
        hub.repos["o/private"] = Repo(sharded(), token="hf_right")
        with pytest.raises(DownloadFailed, match="is gated"):
            ask("hf:o/gated")
        with pytest.raises(ModelNotFound, match="give a token"):
            ask("hf:o/private", token="hf_wrong")
        assert ask("hf:o/private", token="hf_right").layer_count == 4
        assert not [seen for seen in hub.seen if seen.host.startswith("localhost") and seen.authorized]

    def test_no_hub(self, ask: Ask) -> None:
        source = parse_source("hf:o/n")
        with pytest.raises(DownloadFailed, match="Check the network"):
            inspect_remote(source, endpoint="http://127.0.0.1:9", timeout_s=2)

    def test_a_local_path(self) -> None:
        with pytest.raises(InvalidRequest, match="local path"):
            inspect_remote(parse_source("./m.gguf"))

    def test_a_hub_that_is_none(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        hub.faults.not_json = True
        with pytest.raises(DownloadFailed, match="not a hub's"):
            ask("hf:o/n")

    @pytest.mark.parametrize("where", ["api", "config.json"])
    def test_a_hub_that_falls_silent(self, hub: StandInHub, ask: Ask, where: str) -> None:
        hub.repos["o/n"] = Repo(sharded())
        hub.faults.silent[where] = threading.Event()
        started = time.monotonic()
        with pytest.raises(DownloadFailed, match=r"within 0\.3 s"):
            ask("hf:o/n", deadline_s=0.3)
        assert time.monotonic() - started < 3

    def test_the_same_refusal_as_after_a_download(self, hub: StandInHub, ask: Ask, cache: Path) -> None:
        files = sharded()
        del files["model-00002-of-00002.safetensors"]
        hub.repos["o/n"] = Repo(files)
        with pytest.raises(BadModelFile) as remote:
            ask("hf:o/n")
        with pytest.raises(BadModelFile) as local:
            inspect(download(parse_source("hf:o/n"), cache, endpoint=hub.endpoint))
        assert str(remote.value) == f"hf:o/n cannot be used: {local.value}"
        assert remote.value.path == local.value.path


class TestBadNetworks:
    def test_failures_that_pass(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        hub.faults.statuses["resolve/"] = [503]
        hub.faults.drop_after["config.json"] = [10]
        assert ask("hf:o/n").layer_count == 4

    def test_what_is_here_is_named_where_the_hub_cannot_choose(
        self, hub: StandInHub, cache: Path, ask: Ask, tmp_path: Path
    ) -> None:
        content = write_gguf(tmp_path / "m.gguf").read_bytes()
        hub.repos["o/n"] = Repo({"m.Q8_0.gguf": content, "m.Q4_K_M.gguf": content})
        download(parse_source("hf:o/n:m.Q8_0.gguf"), cache, endpoint=hub.endpoint)
        hub.faults.statuses["api"] = [503]
        with pytest.raises(DownloadFailed, match=r"cannot be reached, .* use it: hf:o/n:m\.Q8_0\.gguf\."):
            ask("hf:o/n")

    def test_failures_that_stay(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        hub.faults.statuses["config.json"] = [500] * 3
        with pytest.raises(DownloadFailed, match=r"config\.json failed 3 times"):
            ask("hf:o/n")

    def test_a_server_that_ignores_ranges_is_cut_off(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo({"sample.gguf": SAMPLE.read_bytes()})
        hub.faults.ignore_range = True
        assert ask("hf:o/n").weight_bytes == inspect(SAMPLE).weight_bytes
        assert hub.served_bytes["sample.gguf"] < hub.repos["o/n"].size("sample.gguf") / 2

    def test_a_server_that_sends_another_range(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(sharded())
        hub.faults.wrong_range = True
        with pytest.raises(DownloadFailed, match="asked for bytes 0-"):
            ask("hf:o/n")


class TestHostileHeaders:
    def test_an_endless_header_ends_at_the_limit(self, hub: StandInHub, ask: Ask) -> None:
        key = b"tokenizer.ggml.tokens"
        head = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little")
        head += len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
        head += (7_900_000).to_bytes(8, "little")  # empty strings, zeros to the end of the file
        hub.repos["o/n"] = Repo({"m.gguf": Sparse(2**40, head)})
        with pytest.raises(BadModelFile, match="headers of more than 8388608 bytes"):
            ask("hf:o/n", limit_bytes=8 * MIB)
        assert hub.served_bytes["m.gguf"] < 16 * MIB

    def test_a_safetensors_header_of_a_gigabyte(self, hub: StandInHub, ask: Ask) -> None:
        hub.repos["o/n"] = Repo(
            {
                "config.json": json.dumps(LLAMA_CONFIG).encode(),
                "model.safetensors": Sparse(2**40, (2**30).to_bytes(8, "little")),
            }
        )
        with pytest.raises(BadModelFile, match="header claims 1073741824 bytes"):
            ask("hf:o/n")
        assert hub.served_bytes["model.safetensors"] < MIB

    def test_a_configuration_of_a_gigabyte(self, hub: StandInHub, ask: Ask) -> None:
        files: dict[str, bytes | Announced] = {**sharded(), "config.json": Sparse(2**30, b"{")}
        hub.repos["o/n"] = Repo(files)
        with pytest.raises(BadModelFile, match=r"config\.json has 1073741824 bytes"):
            ask("hf:o/n")
        assert not hub.requests("GET", "config.json")

    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 600))
    def test_whatever_is_broken_is_said_as_it_is_of_a_file(
        self, hub: StandInHub, ask: Ask, tmp_path: Path, at: int, byte: int, cut: int
    ) -> None:
        content = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
        content[at % len(content)] = byte
        broken = tmp_path / "m.gguf"
        broken.write_bytes(content[: len(content) - cut] if cut < 300 else content)
        hub.repos["o/n"] = Repo({"m.gguf": broken.read_bytes()})

        def outcome(look: Callable[[], ModelFacts]) -> tuple[object, ...]:
            try:
                facts = look()
            except XgenRayError as error:
                return (type(error),)
            return tuple(getattr(facts, name) for name in facts.__slots__ if name not in ("path", "files"))

        assert outcome(lambda: ask("hf:o/n")) == outcome(lambda: inspect(broken))
