"""One machine's stack as far as it needs no Ray; the rest is in tests/e2e."""

import threading

import pytest
import ray

from deployments.local import LocalStack
from xgen_ray.process import free_port


def test_a_stack_that_did_not_start_leaves_other_clusters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve would connect to the one that the environment names, and take its router out."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    stack = LocalStack("127.0.0.1", free_port(), dashboard=False)
    stack.drain(30, threading.Event())
    assert not ray.is_initialized()
    stack.stop()
