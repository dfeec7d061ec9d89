"""What goes wrong between here and the hub, in this project's errors: one table, one place."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from xgen_ray.errors import DiskFull, DownloadFailed, ModelNotFound, XgenRayError
from xgen_ray.models.sources import ModelSource

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Answers that another try may mend.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUSES
    return isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.UnsupportedProtocol)


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub gave no useful answer at all, so that the cache has to do."""
    return is_passing(error) or isinstance(error, OfflineModeIsEnabled)


def is_full(error: OSError) -> bool:
    """Whether there is no room left: on the disk, in the quota, or under the file size limit."""
    return error.errno in _FULL


@contextmanager
def translated_hub_errors(source: ModelSource, endpoint: str, cache_dir: Path) -> Iterator[None]:
    """Turn what the hub's client, HTTP and the disk raise into this project's errors."""
    try:
        yield
    except XgenRayError:
        raise
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        raise _from_answer(error, source, endpoint) from error
    except OfflineModeIsEnabled as error:
        message = f"{source} is not in the cache and the hub's offline mode is on (HF_HUB_OFFLINE)."
        raise DownloadFailed(f"{message} Turn it off or copy the model to this machine.") from error
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise unreachable(
            source, endpoint, "the hub cannot be reached and the cache does not hold all of it"
        ) from error
    except httpx2.TimeoutException as error:
        raise unreachable(source, endpoint, "it did not answer in time") from error
    except httpx2.HTTPError as error:
        raise unreachable(source, endpoint, f"{type(error).__name__}: {error}") from error
    except FileMetadataError as error:
        raise DownloadFailed(f"{endpoint} does not answer like a hub: {error}") from error
    except OSError as error:
        raise _from_disk(error, source, cache_dir) from error
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        # The client trusts the answer's shape; anything that is not a hub ends up here.
        message = f"{endpoint} gave an answer that is not a hub's: {type(error).__name__}: {error}."
        raise DownloadFailed(f"{message} Check the endpoint.") from error


def unreachable(source: ModelSource, endpoint: str, reason: str) -> DownloadFailed:
    advice = "Check the network and the endpoint, then try again: finished files and parts are kept."
    return DownloadFailed(f"{source} could not be downloaded from {endpoint}: {reason}. {advice}")


def disk_full(source: ModelSource, needed_bytes: int | None, free_bytes: int, place: Path) -> DiskFull:
    needs = "more than that" if needed_bytes is None else f"{needed_bytes} more bytes"
    message = f"{source} needs {needs}; {place} has {free_bytes} bytes free."
    return DiskFull(f"{message} Free some space or choose another cache directory.")


def free_bytes(place: Path) -> int:
    """Free space where ``place`` is or will be."""
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _from_answer(error: HfHubHTTPError, source: ModelSource, endpoint: str) -> XgenRayError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        page = f"{endpoint}/{source.repo}"
        advice = f"Accept its terms at {page} and give the token of that account."
        return DownloadFailed(f"{source} is gated (HTTP {status}). {advice}")
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(f"{source.repo} has no revision {source.revision}. Check the branch or commit.")
    if isinstance(error, RemoteEntryNotFoundError):
        return ModelNotFound(f"{source.repo} has no such file ({error.response.url}). Check the name.")
    if isinstance(error, RepositoryNotFoundError):
        advice = "Check the name; if it is private, give a token that may read it."
        return ModelNotFound(f"{endpoint} has no repository {source.repo} (HTTP {status}). {advice}")
    if status in {401, 403}:
        advice = "Give a token that may read this repository."
        return DownloadFailed(f"{endpoint} refuses access to {source} (HTTP {status}). {advice}")
    if status == 404:
        return ModelNotFound(
            f"{endpoint} does not have {source} (HTTP 404). Check the name and the endpoint."
        )
    if status == 429:
        advice = "Wait a few minutes, or give a token."
        return DownloadFailed(f"{endpoint} limits how often it may be asked (HTTP 429). {advice}")
    return unreachable(source, endpoint, f"it answered HTTP {status}")


def _from_disk(error: OSError, source: ModelSource, cache_dir: Path) -> XgenRayError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if is_full(error):
        full = disk_full(source, None, free_bytes(cache_dir), cache_dir)
        return DiskFull(f"{full} (The system says: {reason}.)")
    place = error.filename or cache_dir
    return DownloadFailed(f"{source} could not be stored: {place}: {reason}. Check the cache directory.")
