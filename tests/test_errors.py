"""Every error crosses Ray, which pickles it, and must arrive as it left."""

import pickle

import pytest

from xgen_ray import errors

SAMPLES: dict[type[errors.XgenRayError], errors.XgenRayError] = {
    errors.InvalidRequest: errors.InvalidRequest("bad field", "context"),
    errors.BadModelFile: errors.BadModelFile("truncated", "/models/a.gguf"),
    errors.PlacementRefused: errors.PlacementRefused("too large", ({"backend": "cpu", "reasons": ["x"]},)),
    errors.EngineFailed: errors.EngineFailed("died", "out_of_memory", ("last", "words")),
    errors.NotReady: errors.NotReady("loading", 7.5),
}


def all_errors(root: type[errors.XgenRayError] = errors.XgenRayError) -> list[type[errors.XgenRayError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_an_error_survives_pickling_whole(kind: type[errors.XgenRayError]) -> None:
    error = SAMPLES.get(kind) or kind("what happened")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert copy.args == error.args


def test_every_error_has_a_code_of_its_own_or_its_parents() -> None:
    codes = [kind.__dict__["code"] for kind in all_errors() if "code" in kind.__dict__]
    assert len(codes) == len(set(codes))
