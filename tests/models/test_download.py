import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import WeakFileLock, tqdm

from tests.fakes.hub import Announced, Repo, StandInHub
from tests.models.build import LLAMA_CONFIG, safetensors, write_gguf
from xgen_ray.errors import (
    BadModelFile,
    DiskFull,
    DownloadFailed,
    InvalidRequest,
    ModelNotFound,
    XgenRayError,
)
from xgen_ray.models import DownloadProgress, ModelTask, commit_of, download, inspect, parse_source
from xgen_ray.models.cache import CachedRepo
from xgen_ray.models.transfer import BlobTransfer, Meter, Site

BIG = "m.Q4_K_M.gguf"
SIZE = 4_000_000


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub().running() as hub:
        yield hub


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_gguf(tmp_path_factory.mktemp("gguf") / BIG, elements=SIZE // 4)
    return path.read_bytes()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetch(hub: StandInHub, cache: Path) -> Callable[..., Path]:
    def fetch(source: str, **options: Any) -> Path:
        return download(parse_source(source), cache, endpoint=hub.endpoint, **{"timeout_s": 5.0, **options})

    return fetch


def st_repo() -> Repo:
    weights = safetensors({"a": ("F32", [300_000], 1_200_000)})
    return Repo(
        {
            "config.json": json.dumps(LLAMA_CONFIG).encode(),
            "model-00001-of-00002.safetensors": weights,
            "model-00002-of-00002.safetensors": safetensors({"b": ("F32", [2], 8)}),
            "model.safetensors.index.json": json.dumps(
                {"weight_map": {f"{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}}
            ).encode(),
            "tokenizer.json": b"{}",
            "1_Pooling/config.json": b"{}",
            "pytorch_model.bin": b"pickle",
            "modeling_evil.py": b"import os",
        }
    )


class TestWhatArrives:
    def test_a_gguf_file_that_can_be_read(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path, gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes, "README.md": b"hello"})
        path = fetch("hf:o/n")
        assert path == cache / "models--o--n" / "snapshots" / hub.repos["o/n"].commit / BIG
        assert path.read_bytes() == gguf_bytes
        assert inspect(path).layer_count == 4
        assert sorted(file.name for file in path.parent.iterdir()) == [BIG]

    def test_a_whole_huggingface_folder_without_pickles_and_code(
        self, hub: StandInHub, fetch: Callable[..., Path]
    ) -> None:
        hub.repos["o/n"] = st_repo()
        folder = fetch("hf:o/n")
        names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        assert names == set(st_repo().files) - {"pytorch_model.bin", "modeling_evil.py"}
        facts = inspect(folder)
        assert (facts.task, facts.weight_bytes, facts.layer_count) == (ModelTask.GENERATE, 1_200_008, 4)
        assert not hub.requests("GET", "pytorch_model.bin")

    def test_all_parts_of_a_split_file(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        names = [f"q/m-0000{part}-of-00002.gguf" for part in (1, 2)]
        hub.repos["o/n"] = Repo({names[0]: gguf_bytes, names[1]: b"second", "other.gguf": b"no"})
        path = fetch(f"hf:o/n:{names[1]}")
        assert path.name == "m-00001-of-00002.gguf"
        assert sorted(file.name for file in path.parent.iterdir()) == [name.split("/")[1] for name in names]

    def test_a_revision(self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        commit = hub.repos["o/n"].commit
        assert fetch(f"hf:o/n@{commit}:{BIG}").parent.name == commit
        with pytest.raises(ModelNotFound, match="no revision v9"):
            fetch("hf:o/n@v9")

    def test_nothing_a_second_time(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        first = fetch("hf:o/n")
        hub.seen.clear()
        assert fetch("hf:o/n") == first
        assert not hub.requests("GET", BIG)

    def test_two_at_once_fetch_each_file_once(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        release = hub.faults.stall[BIG] = threading.Event()
        with ThreadPoolExecutor() as pool:
            first = pool.submit(fetch, "hf:o/n")
            assert hub.stalled.wait(10)
            second = pool.submit(fetch, "hf:o/n")
            release.set()
            assert first.result(20) == second.result(20)
        assert len(hub.requests("GET", f"storage/o/n/{BIG}")) == 1


class TestProgress:
    def test_is_reported_over_all_files_from_the_calling_thread(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.stall[BIG] = threading.Event()
        seen: list[DownloadProgress] = []
        threads = set()

        def show(progress: DownloadProgress) -> None:
            threads.add(threading.get_ident())
            seen.append(progress)
            if 0 < progress.done_bytes < progress.total_bytes:
                hub.faults.stall[BIG].set()

        fetch("hf:o/n", on_progress=show)
        assert threads == {threading.get_ident()}
        assert {progress.total_bytes for progress in seen} == {len(gguf_bytes)}
        done = [progress.done_bytes for progress in seen]
        assert done == sorted(done)
        assert done[-1] == len(gguf_bytes)
        assert any(0 < count < len(gguf_bytes) for count in done)
        assert seen[-1].message == f"{BIG} (the only GGUF model in the repository)"

    def test_that_fails_ends_the_download(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})

        def show(_: DownloadProgress) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            fetch("hf:o/n", on_progress=show)


class TestInterruptions:
    def test_a_dropped_connection_goes_on_where_it_stopped(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.drop_after[BIG] = [1_000_000, 500_000]
        assert fetch("hf:o/n").read_bytes() == gguf_bytes
        ranges = [seen.range for seen in hub.requests("GET", f"storage/o/n/{BIG}")]
        assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]

    def test_a_new_attempt_goes_on_where_the_last_one_stopped(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path, gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        cancel, kept = threading.Event(), threading.Event()
        hub.faults.stall[BIG] = threading.Event()

        def show(progress: DownloadProgress) -> None:
            if progress.done_bytes > 0:
                kept.set()

        with ThreadPoolExecutor() as pool:
            running = pool.submit(fetch, "hf:o/n", on_progress=show, cancel=cancel)
            # What the hub has sent is not there yet.
            assert kept.wait(10)
            cancel.set()
            with pytest.raises(DownloadFailed, match="cancelled"):
                running.result(10)
        hub.faults.stall.pop(BIG).set()
        partial = next((cache / "models--o--n" / "blobs").glob("*.partial"))
        hub.seen.clear()
        assert fetch("hf:o/n").read_bytes() == gguf_bytes
        asked = hub.requests("GET", f"storage/o/n/{BIG}")[-1].range
        assert asked is not None
        assert int(asked.removeprefix("bytes=").rstrip("-")) > 0
        assert not partial.exists()

    def test_a_server_that_knows_no_ranges_starts_over(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.drop_after[BIG] = [1_000_000]
        hub.faults.ignore_range = True
        assert fetch("hf:o/n").read_bytes() == gguf_bytes

    def test_a_partial_file_with_wrong_bytes_is_found_out_and_mended(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path, gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        blobs = cache / "models--o--n" / "blobs"
        blobs.mkdir(parents=True)
        partial = blobs / f"{hub.repos['o/n'].etag(BIG)}.partial"
        partial.write_bytes(b"x" * 1_000_000)
        with pytest.raises(DownloadFailed, match="checksum"):
            fetch("hf:o/n")
        assert not partial.exists()
        assert fetch("hf:o/n").read_bytes() == gguf_bytes

    def test_a_partial_file_that_is_too_long_starts_over(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path, gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        blobs = cache / "models--o--n" / "blobs"
        blobs.mkdir(parents=True)
        (blobs / f"{hub.repos['o/n'].etag(BIG)}.partial").write_bytes(bytes(len(gguf_bytes) + 1))
        assert fetch("hf:o/n").read_bytes() == gguf_bytes

    def test_corrupt_bytes_are_never_kept(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path, gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.corrupt.add(BIG)
        with pytest.raises(DownloadFailed, match=r"checksum .* try again"):
            fetch("hf:o/n")
        assert not list((cache / "models--o--n" / "blobs").iterdir())

    def test_the_library_itself_keeps_nothing_of_an_interrupted_file(
        self, hub: StandInHub, cache: Path, gguf_bytes: bytes
    ) -> None:
        """Why transfers are our own. Once this fails, the library resumes and they can go."""
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})

        class Interrupting(tqdm):
            def update(self, n: float | None = 1) -> bool | None:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            hf_hub_download("o/n", BIG, cache_dir=cache, endpoint=hub.endpoint, tqdm_class=Interrupting)
        assert not list((cache / "models--o--n" / "blobs").iterdir())

    def test_passing_failures_are_tried_again(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.statuses["storage"] = [503]
        assert fetch("hf:o/n").read_bytes() == gguf_bytes

    def test_lasting_failures_are_not(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.statuses["storage"] = [403]
        with pytest.raises(DownloadFailed, match="refuses access"):
            fetch("hf:o/n")


class TestCancelling:
    def test_ends_at_once_even_when_no_byte_comes(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.stall[BIG] = threading.Event()
        cancel = threading.Event()
        with ThreadPoolExecutor() as pool:
            running = pool.submit(fetch, "hf:o/n", cancel=cancel, timeout_s=60.0)
            assert hub.stalled.wait(10)
            cancel.set()
            started = time.perf_counter()
            with pytest.raises(DownloadFailed, match=rf"cancelled at \d+ of {len(gguf_bytes)} bytes"):
                running.result(10)
            assert time.perf_counter() - started < 2

    def test_before_it_begins(self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.stall[BIG] = threading.Event()
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(DownloadFailed, match="cancelled"):
            fetch("hf:o/n", cancel=cancel)

    def test_leaves_threads_that_end_by_themselves(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.stall[BIG] = threading.Event()
        cancel = threading.Event()
        earlier = set(threading.enumerate())
        with ThreadPoolExecutor() as pool:
            running = pool.submit(fetch, "hf:o/n", cancel=cancel, timeout_s=1.0)
            assert hub.stalled.wait(10)
            begun = [one for one in set(threading.enumerate()) - earlier if one.name == "model-hub"]
            assert begun
            cancel.set()
            with pytest.raises(DownloadFailed):
                running.result(10)
        for thread in begun:
            thread.join(10)
            assert not thread.is_alive()


class TestRefusals:
    @pytest.mark.parametrize(
        ("repo", "source", "kind", "reason"),
        [
            (None, "hf:o/none", ModelNotFound, "no repository o/none .*Check the name"),
            (Repo({BIG: b"x"}, token="secret"), "hf:o/n", ModelNotFound, "if it is private, give a token"),
            (
                Repo({BIG: b"x"}, gated=True),
                "hf:o/n",
                DownloadFailed,
                "gated .*Accept its terms at http.*/o/n",
            ),
            (Repo({BIG: b"x"}), "hf:o/n:other.gguf", ModelNotFound, "no file other"),
            (Repo({"a.gguf": b"x", "b.gguf": b"x"}), "hf:o/n", InvalidRequest, r"a\.gguf, b\.gguf"),
            (Repo({"pytorch_model.bin": b"x"}), "hf:o/n", BadModelFile, "runs code"),
            (
                Repo({BIG: b"x", "../../evil.json": b"x"}),
                "hf:o/n",
                DownloadFailed,
                "points out of its folder",
            ),
        ],
    )
    def test_by_the_repository(
        self,
        hub: StandInHub,
        fetch: Callable[..., Path],
        repo: Repo | None,
        source: str,
        kind: type[XgenRayError],
        reason: str,
    ) -> None:
        if repo is not None:
            hub.repos["o/n"] = repo
        with pytest.raises(kind, match=reason):
            fetch(source)

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (401, "refuses access to hf:o/n .*token"),
            (403, "refuses access to hf:o/n .*token"),
            (404, "HTTP 404"),
            (429, r"how often .*Wait"),
            (500, "HTTP 500"),
            (418, "HTTP 418"),
        ],
    )
    def test_by_the_hub(self, hub: StandInHub, fetch: Callable[..., Path], status: int, reason: str) -> None:
        hub.repos["o/n"] = Repo({BIG: b"x"})
        hub.faults.statuses["api/models"] = [status]
        with pytest.raises((DownloadFailed, ModelNotFound), match=reason):
            fetch("hf:o/n")

    def test_by_something_that_is_no_hub(self, hub: StandInHub, fetch: Callable[..., Path]) -> None:
        hub.repos["o/n"] = Repo({BIG: b"x"})
        hub.faults.not_json = True
        with pytest.raises(DownloadFailed, match=r"not a hub's.*Check the endpoint"):
            fetch("hf:o/n")

    def test_a_token_opens_a_private_repository_and_does_not_leave_the_hub(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes}, token="secret")
        assert fetch("hf:o/n", token="secret").read_bytes() == gguf_bytes
        assert all(seen.authorized for seen in hub.seen if seen.host.startswith("127.0.0.1"))
        elsewhere = [seen for seen in hub.seen if seen.host.startswith("localhost")]
        assert elsewhere
        assert not any(seen.authorized for seen in elsewhere)

    def test_a_local_path(self, cache: Path) -> None:
        with pytest.raises(InvalidRequest, match="local path"):
            download(parse_source("/models/m.gguf"), cache)


class TestWithoutTheHub:
    @pytest.fixture
    def nowhere(self, silent_port: int) -> str:
        """Where the hub should be and nobody listens."""
        return f"http://127.0.0.1:{silent_port}"

    def test_what_is_complete_is_used(self, cache: Path, nowhere: str, gguf_bytes: bytes) -> None:
        with StandInHub().running() as hub:
            hub.repos["o/n"] = Repo({BIG: gguf_bytes})
            hub.repos["o/st"] = st_repo()
            first = [
                download(parse_source(source), cache, endpoint=hub.endpoint)
                for source in ("hf:o/n", "hf:o/st", f"hf:o/n@{hub.repos['o/n'].commit}")
            ]
        again = [
            download(parse_source(source), cache, endpoint=nowhere)
            for source in ("hf:o/n", "hf:o/st", "hf:o/n")
        ]
        assert first == again

    def test_a_hub_that_is_down_is_as_good_as_none(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        path = fetch("hf:o/n")
        hub.faults.statuses["api"] = [503] * 9
        assert fetch("hf:o/n") == path

    def test_what_is_incomplete_is_not_used(self, cache: Path, nowhere: str) -> None:
        with StandInHub().running() as hub:
            hub.repos["o/st"] = st_repo()
            folder = download(parse_source("hf:o/st"), cache, endpoint=hub.endpoint)
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(DownloadFailed, match=r"cannot be reached, and .*lacks 1 of 2 shards"):
            download(parse_source("hf:o/st"), cache, endpoint=nowhere)

    def test_with_nothing_in_the_cache_it_says_so(self, cache: Path, nowhere: str) -> None:
        with pytest.raises(DownloadFailed, match=rf"from {nowhere}: .*Check the network"):
            download(parse_source("hf:o/n"), cache, endpoint=nowhere)

    def test_it_is_not_asked_when_told_so(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        with pytest.raises(ModelNotFound, match=r"hf:o/n is not in the cache .*Download it first"):
            fetch("hf:o/n", offline=True)
        assert not hub.seen
        path = fetch("hf:o/n")
        hub.seen.clear()
        assert fetch("hf:o/n", offline=True) == path
        assert not hub.seen
        path.unlink()
        with pytest.raises(ModelNotFound, match="not complete in the cache"):
            fetch("hf:o/n", offline=True)

    def test_an_interrupted_download_is_not_taken_for_a_model(
        self, hub: StandInHub, fetch: Callable[..., Path]
    ) -> None:
        hub.repos["o/n"] = st_repo()
        hub.faults.statuses["storage"] = [403]
        with pytest.raises(DownloadFailed):
            fetch("hf:o/n")
        with pytest.raises(ModelNotFound, match="not in the cache"):
            fetch("hf:o/n", offline=True)
        with pytest.raises(ModelNotFound, match="not complete in the cache"):
            fetch(f"hf:o/n@{hub.repos['o/n'].commit}", offline=True)

    def test_a_hub_that_never_answers_is_given_up(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.silent["api/models/o/n"] = threading.Event()
        started = time.perf_counter()
        with pytest.raises(DownloadFailed, match="did not answer in time"):
            fetch("hf:o/n", timeout_s=0.2)
        assert time.perf_counter() - started < 10

    def test_a_hub_that_falls_silent_is_given_up(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        hub.faults.silent["resolve"] = threading.Event()
        with pytest.raises(DownloadFailed, match=r"nothing happened for \d+ s\. Check the network"):
            fetch("hf:o/n", timeout_s=0.3)


class TestACommit:
    """A model is fetched as it was planned, whatever the hub has by now."""

    @pytest.fixture
    def old(self, hub: StandInHub, gguf_bytes: bytes, tmp_path: Path) -> str:
        """The commit before the publisher uploaded the file again."""
        old = Repo({BIG: gguf_bytes})
        again = write_gguf(tmp_path / "again.gguf", elements=SIZE // 5).read_bytes()
        hub.repos["o/n"] = Repo({BIG: again, "README.md": b"again"}, earlier=old)
        return old.commit

    def test_is_what_arrives_and_what_is_known_without_the_hub(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes, old: str
    ) -> None:
        path = fetch("hf:o/n", commit=old)
        assert (path.parent.name, path.read_bytes()) == (old, gguf_bytes)
        hub.seen.clear()
        assert fetch("hf:o/n", offline=True) == path
        assert not hub.seen

    def test_does_not_take_back_a_revision(self, fetch: Callable[..., Path], old: str) -> None:
        newest = fetch("hf:o/n")
        assert fetch("hf:o/n", commit=old) != newest
        assert fetch("hf:o/n", offline=True) == newest

    def test_may_be_another_that_is_here_while_the_hub_is_away(
        self, hub: StandInHub, fetch: Callable[..., Path], old: str
    ) -> None:
        """Often the weights are the same; whether they are, whoever asked finds out."""
        newest = fetch("hf:o/n")
        hub.faults.statuses["api"] = [503] * 9
        assert fetch("hf:o/n", commit=old) == newest

    def test_is_used_though_the_hub_has_it_no_more(
        self, hub: StandInHub, fetch: Callable[..., Path], gguf_bytes: bytes, old: str
    ) -> None:
        path = fetch("hf:o/n", commit=old)
        hub.repos["o/n"].earlier = None
        assert fetch("hf:o/n", commit=old) == path
        path.unlink()
        with pytest.raises(ModelNotFound, match=f"o/n has no revision {old}"):
            fetch("hf:o/n", commit=old)


class TestAChoiceOfFiles:
    """What of a repository was fetched by name says nothing of what it is without one."""

    others = (BIG, "m.Q8_0.gguf", "m.Q2_K.gguf")

    @pytest.fixture(autouse=True)
    def repo(self, hub: StandInHub, gguf_bytes: bytes) -> None:
        hub.repos["o/n"] = Repo(dict.fromkeys(self.others, gguf_bytes))

    @pytest.mark.parametrize("named", [others[1:2], others[1:], others[:1]])
    def test_is_not_made_out_of_the_cache(self, fetch: Callable[..., Path], named: tuple[str, ...]) -> None:
        for name in named:
            fetch(f"hf:o/n:{name}")
        told = rf"only the hub knows .* here is .*{named[0]}.*name the file"
        with pytest.raises(ModelNotFound, match=told):
            fetch("hf:o/n", offline=True)
        assert fetch("hf:o/n").name == BIG

    def test_is_remembered(self, hub: StandInHub, fetch: Callable[..., Path]) -> None:
        chosen = fetch("hf:o/n")
        for name in self.others[1:]:
            fetch(f"hf:o/n:{name}")
        assert fetch("hf:o/n", offline=True) == chosen
        hub.faults.statuses["api"] = [503] * 9
        assert fetch("hf:o/n") == chosen

    def test_is_asked_for_where_nobody_can_make_it(self, hub: StandInHub, fetch: Callable[..., Path]) -> None:
        fetch("hf:o/n:m.Q8_0.gguf")
        hub.faults.statuses["api"] = [503] * 9
        with pytest.raises(DownloadFailed, match=r"here is m\.Q8_0\.gguf, name the file .* hf:o/n:m\.Q8_0"):
            fetch("hf:o/n")


@pytest.mark.parametrize(
    ("path", "commit"),
    [
        (f"/c/models--o--n/snapshots/{'a' * 40}", "a" * 40),
        (f"/c/models--o--n/snapshots/{'a' * 40}/sub/m.gguf", "a" * 40),
        (f"/snapshots/old/models--o--n/snapshots/{'b' * 40}/m.gguf", "b" * 40),
        ("/models/m.gguf", None),
        ("/models/snapshots/m.gguf", None),
    ],
)
def test_the_commit_of_a_path(path: str, commit: str | None) -> None:
    assert commit_of(path) == commit


def test_files_beyond_plain_http_are_left_to_the_library(
    hub: StandInHub, cache: Path, gguf_bytes: bytes
) -> None:
    hub.repos["o/n"] = repo = Repo({BIG: gguf_bytes})
    site = Site(parse_source("hf:o/n"), repo.commit, hub.endpoint, None, CachedRepo(cache, "o/n"), 5.0)
    meter = Meter()
    BlobTransfer(site, BIG, meter, threading.Event(), http_limit_bytes=1000).run()
    assert (site.cache.snapshot(repo.commit) / BIG).read_bytes() == gguf_bytes
    assert meter.of(BIG) == len(gguf_bytes)


class Watched(Meter):
    """Tells of a first sign of life that is no byte."""

    def __init__(self) -> None:
        super().__init__()
        self.touched = threading.Event()

    def touch(self) -> None:
        super().touch()
        self.touched.set()


@pytest.mark.parametrize("http_limit_bytes", [2 * SIZE, 1000])
def test_waiting_for_another_process_is_a_sign_of_life(
    hub: StandInHub, cache: Path, gguf_bytes: bytes, http_limit_bytes: int
) -> None:
    hub.repos["o/n"] = repo = Repo({BIG: gguf_bytes})
    site = Site(parse_source("hf:o/n"), repo.commit, hub.endpoint, None, CachedRepo(cache, "o/n"), 5.0)
    lock, meter = site.cache.lock(repo.etag(BIG)), Watched()
    lock.parent.mkdir(parents=True)
    transfer = BlobTransfer(site, BIG, meter, threading.Event(), http_limit_bytes=http_limit_bytes)
    with ThreadPoolExecutor() as pool:
        with WeakFileLock(lock):
            waiting = pool.submit(transfer.run)
            assert meter.touched.wait(10)
            assert not hub.requests("GET", BIG)
        waiting.result(10)
    assert meter.of(BIG) == len(gguf_bytes)


class TestAFullDisk:
    def test_is_foreseen_before_anything_is_written(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: Announced(2**60)})
        with pytest.raises(DiskFull, match=rf"needs {2**60} more bytes; {cache} has \d+ bytes free"):
            fetch("hf:o/n")
        assert not cache.exists()
        assert not hub.requests("GET", "resolve")

    def test_counts_what_is_there_already(
        self, hub: StandInHub, fetch: Callable[..., Path], cache: Path
    ) -> None:
        hub.repos["o/n"] = Repo({BIG: Announced(2**60)})
        partial = cache / "models--o--n" / "blobs" / f"{hub.repos['o/n'].etag(BIG)}.partial"
        partial.parent.mkdir(parents=True)
        partial.write_bytes(b"x" * 1000)
        with pytest.raises(DiskFull, match=f"needs {2**60 - 1000} more bytes"):
            fetch("hf:o/n")

    def test_that_comes_about_on_the_way_gives_its_space_back(
        self, hub: StandInHub, cache: Path, gguf_bytes: bytes
    ) -> None:
        """A child with a limit on the size of files: the system refuses the write as a full disk does."""
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        child = subprocess.run(
            [sys.executable, "-c", CHILD, hub.endpoint, str(cache)],
            preexec_fn=limit_file_size,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert child.stdout.startswith("DiskFull hf:o/n needs more than that"), child.stderr
        assert not list((cache / "models--o--n" / "blobs").iterdir())

    @pytest.mark.skipif(
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
        reason="no private mounts here",
    )
    def test_that_fills_up_on_the_way_for_real(self, hub: StandInHub, cache: Path, gguf_bytes: bytes) -> None:
        """A file system of its own, which something else fills as soon as the download has begun."""
        hub.repos["o/n"] = Repo({BIG: gguf_bytes})
        filled = hub.faults.stall[BIG] = threading.Event()
        cache.mkdir()
        script = 'mount -t tmpfs -o size=7m none "$1" && exec "$2" -c "$3" "$4" "$1"'
        arguments = [str(cache), sys.executable, CHILD, hub.endpoint]
        with subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", *arguments], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            lines = []
            for line in child.stdout:
                lines.append(line)
                filled.set()
        assert lines[:-1] == ["filled, 1 partial file\n", "0 partial files\n"]
        assert re.match(r"DiskFull hf:o/n needs more than that; .* has \d+ bytes free", lines[-1])


CHILD = """
import sys
from pathlib import Path
from xgen_ray.errors import DiskFull
from xgen_ray.models import download, parse_source
cache = Path(sys.argv[2])
def fill(progress):
    if progress.done_bytes and cache.is_mount() and not (cache / "filler").exists():
        with (cache / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(65536)):
                    pass
            except OSError:
                print("filled,", len(list(cache.rglob("*.partial"))), "partial file", flush=True)
try:
    download(parse_source("hf:o/n"), cache, fill, endpoint=sys.argv[1])
except DiskFull as error:
    if (cache / "filler").exists():
        print(len(list(cache.rglob("*.partial"))), "partial files")
    print("DiskFull", error)
"""


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


def test_a_cache_that_cannot_be_written_is_named(hub: StandInHub, tmp_path: Path, gguf_bytes: bytes) -> None:
    hub.repos["o/n"] = Repo({BIG: gguf_bytes})
    (tmp_path / "file").touch()
    with pytest.raises(DownloadFailed, match=r"Check the cache directory"):
        download(parse_source("hf:o/n"), tmp_path / "file" / "cache", endpoint=hub.endpoint)


def test_importing_models_does_not_import_the_hubs_client() -> None:
    code = "import sys, xgen_ray.models; sys.exit('httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
