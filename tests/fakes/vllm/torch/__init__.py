"""As much of torch as says what it was built for."""

import os
from types import SimpleNamespace

_WORDS = os.environ.get("FAKE_VLLM", "").split(",")
__version__ = "2.13.0"
version = SimpleNamespace(cuda="13.0" if "cuda" in _WORDS else None, hip="7.2" if "rocm" in _WORDS else None)
