"""Chooses a platform when it is first asked for, and says why not another at DEBUG only, as vLLM does."""

import logging
import os

from vllm import WORDS

logger = logging.getLogger(__name__)


class _Platform:
    kind = ""

    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def is_rocm(self) -> bool:
        return self.kind == "rocm"

    def is_cpu(self) -> bool:
        return self.kind == "cpu"


class UnspecifiedPlatform(_Platform):
    pass


class CpuPlatform(_Platform):
    kind = "cpu"


class NvmlCudaPlatform(_Platform):
    kind = "cuda"


class RocmPlatform(_Platform):
    kind = "rocm"


def _choose() -> _Platform:
    if os.environ.get("VLLM_TARGET_DEVICE") == "cpu":
        return CpuPlatform()
    logger.debug("Checking if CUDA platform is available.")
    if "cuda" in WORDS and "no-device" not in WORDS:
        return NvmlCudaPlatform()
    logger.debug("CUDA platform is not available because: %s", "NVML Shared Library Not Found")
    if "rocm" in WORDS and "no-device" not in WORDS:
        return RocmPlatform()
    logger.debug("ROCm platform is not available because: %s", "No module named 'amdsmi'")
    return UnspecifiedPlatform()


def __getattr__(name: str) -> _Platform:
    if name != "current_platform":
        raise AttributeError(name)
    globals()[name] = _choose()
    return globals()[name]  # type: ignore[no-any-return]  # it was put there a line before
