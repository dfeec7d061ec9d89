import pytest

from tests.serving.machine_builders import Control


@pytest.fixture
def control() -> Control:
    """Control's state machine as it is after a first start."""
    return Control()
