"""Exit codes: each error has one, the same whether it was raised here or came over HTTP."""

from collections.abc import Iterator

import pytest

from xgen_ray import errors
from xgen_ray.api.errors import STATUS
from xgen_ray.cli import exits
from xgen_ray.cli.exits import ExitCode, code_of_answer, code_of_error


def _tree(root: type[errors.XgenRayError] = errors.XgenRayError) -> Iterator[type[errors.XgenRayError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


ALL = sorted(_tree(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_ends_the_same_way_from_here_and_from_afar(kind: type[errors.XgenRayError]) -> None:
    status = next(STATUS[base][0] for base in kind.__mro__ if base in STATUS)
    assert code_of_answer(status, kind.code) is code_of_error(kind("what, how much, what to do"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (errors.EngineFailed, ExitCode.FAILED),
        (errors.DiskFull, ExitCode.FAILED),
        (errors.PathNotAllowed, ExitCode.USAGE),
        (errors.ModelNotFound, ExitCode.USAGE),
        (errors.UnknownOption, ExitCode.USAGE),
        (errors.Unauthorized, ExitCode.UNAUTHORISED),
        (errors.Forbidden, ExitCode.UNAUTHORISED),
        (errors.PlacementRefused, ExitCode.REFUSED),
        (errors.RequestTimeout, ExitCode.TIMED_OUT),
        (errors.NotInTime, ExitCode.TIMED_OUT),
    ],
)
def test_errors_have_their_codes(kind: type[errors.XgenRayError], expected: ExitCode) -> None:
    assert code_of_error(kind("m")) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ExitCode.USAGE),
        (401, ExitCode.UNAUTHORISED),
        (403, ExitCode.UNAUTHORISED),
        (404, ExitCode.USAGE),
        (408, ExitCode.TIMED_OUT),
        (500, ExitCode.FAILED),
        (503, ExitCode.FAILED),
        (504, ExitCode.TIMED_OUT),
    ],
)
def test_foreign_errors_go_by_their_status(status: int, expected: ExitCode) -> None:
    assert code_of_answer(status, "something_of_theirs") is expected
    assert code_of_answer(status, None) is expected


def test_the_table_in_the_docstring_is_the_enum() -> None:
    documented = {
        int(line.split()[0]) for line in (exits.__doc__ or "").splitlines() if line.strip()[:1].isdigit()
    }
    assert documented == {code.value for code in ExitCode}
