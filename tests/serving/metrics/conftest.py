"""The stand-in vendor libraries of the hardware tests."""

from tests.hardware.conftest import lab

__all__ = ["lab"]
