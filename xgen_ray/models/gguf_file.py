"""The way in to what reads GGUF files, without what it takes to read one.

The gguf library brings numpy: a client that never opens a model should not wait for them to be imported.
"""

from pathlib import Path
from typing import Final

from xgen_ray.models.files import DISK, Files
from xgen_ray.models.types import ModelFacts

MAGIC: Final = b"GGUF"


def read_gguf(path: Path | str, files: Files = DISK) -> ModelFacts:
    """Facts of the model in the GGUF file ``path``, or in the split set that it is a part of.

    Reads headers only. Raises ``BadModelFile`` for anything that an engine could not load for the file's
    own sake; an architecture that no engine knows is not such a thing.
    """
    from xgen_ray.models.gguf_facts import facts_of

    return facts_of(Path(path), files)
