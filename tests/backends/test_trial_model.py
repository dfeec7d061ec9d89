from pathlib import Path

import gguf
import numpy
import pytest
from gguf import quants

from xgen_ray.backends.trial_model import trial_model
from xgen_ray.models import read_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trial_model(tmp_path_factory.mktemp("trial") / "below")


def test_is_a_small_model_that_our_own_reader_takes(model: Path) -> None:
    facts = read_gguf(model)
    assert (facts.architecture, facts.layer_count, facts.embedding_length) == ("llama", 1, 256)
    assert model.stat().st_size < 2**20


def test_has_a_matrix_of_every_type_that_engines_have_code_of_their_own_for(model: Path) -> None:
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(model).tensors}
    assert {"Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "F32"} <= kinds


def test_every_weight_is_a_number_of_a_sane_size(model: Path) -> None:
    for tensor in gguf.GGUFReader(model).tensors:
        weights = quants.dequantize(tensor.data, tensor.tensor_type)
        assert numpy.isfinite(weights).all(), tensor.name
        assert 0 < numpy.abs(weights).max() < 10, tensor.name


def test_is_written_once_and_leaves_nothing_else(model: Path) -> None:
    before = model.stat().st_mtime_ns
    assert trial_model(model.parent) == model
    assert model.stat().st_mtime_ns == before
    assert list(model.parent.iterdir()) == [model]
