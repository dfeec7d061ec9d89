"""Keys: who is let in, and that a key shows nowhere."""

import pytest

from xgen_ray.api.keys import ANONYMOUS, ApiKeys
from xgen_ray.console import KeyEntry, Role
from xgen_ray.errors import ConfigError, Unauthorized

KEYS = ApiKeys([("alice", "sk-alice"), ("bob", "sk-bob")])


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({b"authorization": b"Bearer sk-alice"}, "alice"),
        ({b"authorization": b"bearer  sk-bob "}, "bob"),
        ({b"x-api-key": b"sk-bob"}, "bob"),
        ({b"authorization": b"Basic eA==", b"x-api-key": b"sk-bob"}, "bob"),
        ({b"authorization": b"Bearer sk-alice", b"x-api-key": b"sk-bob"}, "alice"),
    ],
)
def test_a_key_is_known_by_its_name(headers: dict[bytes, bytes], name: str) -> None:
    assert KEYS.admit(headers) == name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer "},
        {b"authorization": b"sk-alice"},
        {b"authorization": b"Bearer sk-alic"},
        {b"authorization": b"Bearer sk-alice2"},
        {b"authorization": b"Bearer SK-ALICE"},
        {b"authorization": b"Bearer \xff\xfe"},
        {b"authorization": b"Bearer wrong", b"x-api-key": b"sk-bob"},
        {b"x-api-key": b""},
    ],
)
def test_anything_else_is_refused_without_quoting_it(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Unauthorized) as refused:
        KEYS.admit(headers)
    assert "sk-" not in str(refused.value)
    assert "wrong" not in str(refused.value)


def test_without_keys_everybody_is_anonymous() -> None:
    keys = ApiKeys()
    assert not keys.required
    assert keys.admit({}) == ANONYMOUS
    assert keys.admit({b"authorization": b"Bearer whatever"}) == ANONYMOUS


def test_a_key_says_what_its_caller_may_do() -> None:
    keys = ApiKeys([KeyEntry("ops", "sk-1"), KeyEntry("app", "sk-2", Role.INFER)])
    assert keys.identify({b"x-api-key": b"sk-1"}) == ("ops", Role.MANAGE)
    assert keys.identify({b"x-api-key": b"sk-2"}) == ("app", Role.INFER)
    assert ApiKeys().identify({}).role is Role.MANAGE


def test_an_empty_key_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match="'carol'"):
        ApiKeys([("carol", " ")])


def test_the_keys_themselves_are_not_kept() -> None:
    assert KEYS.required
    assert "sk-" not in repr(KEYS)
    assert repr(KEYS) == "ApiKeys(['alice', 'bob'])"
