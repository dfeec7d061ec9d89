"""What a model is, read from its files, and how it gets onto this node."""

from xgen_ray.models.cache import commit_of
from xgen_ray.models.confinement import resolve_local
from xgen_ray.models.download import download
from xgen_ray.models.gguf_file import read_gguf
from xgen_ray.models.hf_folder import read_hf_folder
from xgen_ray.models.inspection import inspect
from xgen_ray.models.remote import RemoteModel, inspect_remote, survey_remote
from xgen_ray.models.shelf import Shelf, ShelvedModel, read_shelf
from xgen_ray.models.sources import ModelSource, default_name, parse_source
from xgen_ray.models.types import DownloadProgress, ModelFacts, ModelFormat, ModelTask

__all__ = [
    "DownloadProgress",
    "ModelFacts",
    "ModelFormat",
    "ModelSource",
    "ModelTask",
    "RemoteModel",
    "Shelf",
    "ShelvedModel",
    "commit_of",
    "default_name",
    "download",
    "inspect",
    "inspect_remote",
    "parse_source",
    "read_gguf",
    "read_hf_folder",
    "read_shelf",
    "resolve_local",
    "survey_remote",
]
