"""The page: files that a browser gets as they are. ``README.md`` beside them says how they are made."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
