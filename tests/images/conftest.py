"""A builder for the tests here; the builds that take an hour run only where their mark is asked for."""

import os
from collections.abc import Iterator

import pytest

from tests.images.builds import Builder, why_not
from tests.namespaces import Namespaces

LONG = "image_engines"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if LONG in config.getoption("markexpr"):
        return
    long = [item for item in items if item.get_closest_marker(LONG)]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def builder() -> Iterator[Builder]:
    """With a base to build on."""
    if (why := why_not()) is not None:
        pytest.skip(f"no images are built here: {why}")
    with Builder() as made:
        made.make_base()
        yield made


@pytest.fixture(scope="session")
def namespaces() -> Iterator[Namespaces]:
    made = Namespaces(f"i{os.getpid() % 10_000}")
    try:
        if (why := made.make()) is not None:
            pytest.skip(f"no network namespaces here: {why}")
        yield made
    finally:
        made.remove()
