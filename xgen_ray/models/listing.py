"""What a repository of the hub holds at one commit."""

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import HfApi

from xgen_ray.errors import DownloadFailed
from xgen_ray.models.cache import is_commit
from xgen_ray.models.sources import ModelSource


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as the hub lists it. ``etag`` is what its blob will be called."""

    size: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at ``commit``, by name."""

    commit: str
    files: Mapping[str, RemoteFile]

    @property
    def sizes(self) -> dict[str, int]:
        return {name: file.size for name, file in self.files.items()}


def list_files(
    source: ModelSource, repo: str, *, endpoint: str, token: str | None, timeout_s: float
) -> Listing:
    """Ask the hub for ``repo`` at the revision of ``source``: one request. Foreign errors pass through."""
    api = HfApi(endpoint=endpoint, token=token)
    info = api.model_info(repo, revision=source.revision, timeout=timeout_s, files_metadata=True)
    if info.sha is None or not is_commit(info.sha):
        message = f"{endpoint} names the commit {info.sha!r} for {source}."
        raise DownloadFailed(f"{message} That is not how a hub answers: check the endpoint.")
    files = {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in info.siblings or ()
    }
    return Listing(info.sha, files)
