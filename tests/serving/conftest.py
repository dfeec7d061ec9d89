import pytest

from tests.serving.machine_builders import Control


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """In place of the monotonic clock, the event loop's too: nothing times out meanwhile."""
    now = [1000.0]
    monkeypatch.setattr("xgen_ray.serving.dispatcher.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def control() -> Control:
    """Control's state machine as it is after a first start."""
    return Control()
