"""Stand-in for PyTorch: a test copies this file to ``torch/__init__.py`` and writes ``torch/version.py``.

STANDIN_TORCH_CARDS holds the cards as JSON, a list of the properties that ``get_device_properties``
gives; ``{"error": "..."}`` makes that card fail. STANDIN_TORCH_MARK names a file that is written when
the package is imported, for tests of when that must not happen.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import version

__version__ = str(version.__version__)

if mark := os.environ.get("STANDIN_TORCH_MARK"):
    Path(mark).write_text("imported")


class _Cuda:
    def __init__(self) -> None:
        self._cards: list[dict[str, Any]] = json.loads(os.environ.get("STANDIN_TORCH_CARDS", "[]"))

    def device_count(self) -> int:
        return len(self._cards)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        card = self._cards[index]
        if "error" in card:
            raise RuntimeError(card["error"])
        return SimpleNamespace(**card)


cuda = _Cuda()
