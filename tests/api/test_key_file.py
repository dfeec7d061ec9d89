"""A file of keys that is edited while they are in use."""

import logging
from pathlib import Path

import pytest

from xgen_ray.api.key_file import KeyFile
from xgen_ray.api.keys import ApiKeys
from xgen_ray.console import KeyEntry
from xgen_ray.errors import ConfigError, Unauthorized
from xgen_ray.settings import read_api_keys


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """As an editor does: another file in the place of the one before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(mode)
    new.rename(path)


def admitted(keys: ApiKeys, *sent: str) -> list[str]:
    """Whose these keys are, of those that are let in."""
    names = []
    for key in sent:
        try:
            names.append(keys.admit({b"x-api-key": key.encode()}))
        except Unauthorized:
            continue
    return names


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    write(path, "alice: sk-1\n")
    return path


def test_a_key_that_left_the_file_is_good_no_more_and_a_new_one_is(path: Path) -> None:
    keys = ApiKeys([KeyEntry("given", "sk-0")], of_file=read_api_keys(path))
    file = KeyFile(path, keys, read_api_keys)
    file.look()
    assert admitted(keys, "sk-0", "sk-1", "sk-2") == ["given", "alice"]
    write(path, "bob: sk-2\n")
    file.look()
    assert admitted(keys, "sk-0", "sk-1", "sk-2") == ["given", "bob"]


def test_what_changed_before_the_first_look_is_taken_up(path: Path) -> None:
    keys = ApiKeys(of_file=[KeyEntry("alice", "sk-old")])
    KeyFile(path, keys, read_api_keys).look()
    assert admitted(keys, "sk-old", "sk-1") == ["alice"]


def test_a_file_is_read_only_when_it_changed(path: Path) -> None:
    reads: list[Path] = []

    def read(path: Path) -> tuple[KeyEntry, ...]:
        reads.append(path)
        return read_api_keys(path)

    file = KeyFile(path, ApiKeys(), read)
    file.look()
    file.look()
    assert len(reads) == 1
    write(path, "alice: sk-1\n")
    file.look()
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("text", "mode"), [("alice:\n", 0o600), ("bob: sk-2\n", 0o644), ("bob: !!int sk-2\n", 0o600), (None, 0)]
)
def test_a_file_that_has_become_wrong_leaves_the_keys_and_is_told_once(
    path: Path, caplog: pytest.LogCaptureFixture, text: str | None, mode: int
) -> None:
    keys = ApiKeys()
    file = KeyFile(path, keys, read_api_keys)
    file.look()
    if text is None:
        path.unlink()
    else:
        write(path, text, mode)
    with caplog.at_level(logging.ERROR):
        file.look()
        file.look()
    assert len(caplog.messages) == 1
    assert "the keys stay as they were" in caplog.messages[0]
    assert admitted(keys, "sk-1", "sk-2") == ["alice"]
    write(path, "bob: sk-2\n")
    file.look()
    assert admitted(keys, "sk-1", "sk-2") == ["bob"]


def test_keys_that_are_none_replace_nothing() -> None:
    keys = ApiKeys(of_file=[KeyEntry("alice", "sk-1")])
    with pytest.raises(ConfigError):
        keys.replace([KeyEntry("bob", "sk-2"), KeyEntry("carol", " ")])
    assert admitted(keys, "sk-1", "sk-2") == ["alice"]
