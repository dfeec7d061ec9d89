"""Opening files that someone else wrote: regular ones only, never blocking, sizes bounded.

Readers ask ``Files`` for everything, so that the same code reads a disk and a hub.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from xgen_ray.errors import BadModelFile, ModelNotFound

# Tokenizer configurations of large vocabularies reach a few MiB; nothing read here is larger.
MAX_JSON_BYTES = 32 * 2**20

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def translated_os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into this project's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist. Check the path and the node it is on.") from error
    except PermissionError as error:
        message = f"{path} cannot be read: permission denied. Let the user that runs xgen-ray read it."
        raise BadModelFile(message, str(path)) from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}:
            raise ModelNotFound(f"{path} does not exist: {os.strerror(error.errno)}.") from error
        raise BadModelFile(f"{path} cannot be read: {error.strerror or error}.", str(path)) from error


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open ``path`` for reading and give it with its size, or say why it is not a file to be read.

    Anything but a regular file is refused before it is opened (a pipe would block, a device may act),
    and once more after, since it may have been swapped in between.
    """
    with translated_os_errors(path):
        _refuse_irregular(path, path.stat().st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            _refuse_irregular(path, status.st_mode)
            yield file, status.st_size


class Readable(Protocol):
    """Bytes with a position; ``read`` may give fewer than were asked for, and none at the end."""

    def seek(self, position: int, /) -> int: ...

    def read(self, count: int, /) -> bytes: ...


class Files(Protocol):
    """Where model files are. Raises this project's errors, with the path in them."""

    def is_folder(self, path: Path) -> bool: ...

    def names(self, folder: Path) -> frozenset[str]:
        """What lies directly in ``folder``."""
        ...

    def exists(self, path: Path) -> bool: ...

    def open(self, path: Path) -> AbstractContextManager[tuple[Readable, int]]:
        """The file at ``path`` and its size."""
        ...


class DiskFiles:
    """The files of this node."""

    def is_folder(self, path: Path) -> bool:
        with translated_os_errors(path):
            return path.is_dir()

    def names(self, folder: Path) -> frozenset[str]:
        with translated_os_errors(folder):
            return frozenset(entry.name for entry in folder.iterdir())

    def exists(self, path: Path) -> bool:
        with translated_os_errors(path):
            return path.exists()

    def open(self, path: Path) -> AbstractContextManager[tuple[Readable, int]]:
        return open_regular(path)


DISK: Final[Files] = DiskFiles()


def _refuse_irregular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for matches, name in _KINDS if matches(mode)), "not a regular file")
    raise BadModelFile(f"{path} is {kind}, not a model file.", str(path))


def read_exactly(file: Readable, count: int) -> bytes:
    """``count`` bytes from an unbuffered file, or as many as there are."""
    parts: list[bytes] = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_text(path: Path, limit: int = MAX_JSON_BYTES, files: Files = DISK) -> str:
    """The text of a file of at most ``limit`` bytes. Bytes that are not UTF-8 are replaced."""
    with files.open(path) as (file, size):
        if size > limit:
            message = f"{path} has {size} bytes; a file of its kind has at most {limit}."
            raise BadModelFile(message, str(path))
        return read_exactly(file, size).decode("utf-8", errors="replace")


def parse_json_object(text: str, path: Path) -> dict[str, object]:
    """``text`` as a JSON object, whatever is wrong with it said with the name of the file it is from."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadModelFile(f"{path} is not valid JSON: {error}. Download it again.", str(path)) from error
    if not isinstance(value, dict):
        message = f"{path} holds a JSON {type(value).__name__}, where an object belongs."
        raise BadModelFile(message, str(path))
    return value


def read_json_object(path: Path, files: Files = DISK) -> dict[str, object]:
    """The JSON object in ``path``; a missing file is ``ModelNotFound``."""
    return parse_json_object(read_text(path, files=files), path)
