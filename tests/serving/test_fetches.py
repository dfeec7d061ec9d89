"""Downloads shared by those who ask, over sources that arrive when a test says so."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from xgen_ray.errors import DownloadFailed, InvalidRequest, XgenRayError
from xgen_ray.models import ModelFacts, ModelFormat
from xgen_ray.schema import Progress
from xgen_ray.serving.fetches import KEEP_S, Fetches

FACTS = ModelFacts(ModelFormat.GGUF, "/cache/m.gguf", ("/cache/m.gguf",), 1)


class HeldSources:
    """Every fetch waits until it is let through, told to fail, or cancelled."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.arrival: Future[None] = Future()
        self.ended = threading.Semaphore(0)
        self.cancelled = 0

    def fetch(
        self,
        model: str,
        on_progress: Callable[[Progress], None],
        cancelled: threading.Event,
        commit: str | None,
    ) -> ModelFacts:
        self.started.append(model if commit is None else f"{model} at {commit}")
        on_progress(Progress(stage="download", message=model))
        try:
            while not self.arrival.done():
                if cancelled.wait(0.01):
                    self.cancelled += 1
                    raise DownloadFailed("cancelled")
            self.arrival.result()
            return FACTS
        finally:
            self.ended.release()

    def wait_for_end(self) -> None:
        assert self.ended.acquire(timeout=10)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sources() -> HeldSources:
    return HeldSources()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetches(sources: HeldSources, clock: Clock) -> Iterator[Fetches]:
    fetches = Fetches(sources, clock)
    yield fetches
    fetches.close()


def finished(fetches: Fetches, ticket: str) -> tuple[ModelFacts | None, XgenRayError | None]:
    deadline = threading.Event()
    for _ in range(500):
        state = fetches.look(ticket)
        assert state is not None
        if state.is_over:
            return state.facts, state.error
        deadline.wait(0.01)
    raise AssertionError("it does not end")


def test_one_download_serves_all_tickets(fetches: Fetches, sources: HeldSources) -> None:
    for ticket in ("a", "b", "a"):
        assert not fetches.start(ticket, "hf:o/n").is_over
    sources.arrival.set_result(None)
    assert finished(fetches, "a") == finished(fetches, "b") == (FACTS, None)
    assert sources.started == ["hf:o/n"]


def test_another_commit_is_another_download(fetches: Fetches, sources: HeldSources) -> None:
    for ticket, commit in (("a", "c1"), ("b", "c1"), ("c", "c2"), ("a", "c2")):
        fetches.start(ticket, "hf:o/n", commit)
    sources.arrival.set_result(None)
    assert finished(fetches, "a") == finished(fetches, "b") == (FACTS, None)
    assert sorted(sources.started) == ["hf:o/n at c1", "hf:o/n at c2"]


def test_the_last_ticket_to_go_cancels(fetches: Fetches, sources: HeldSources) -> None:
    fetches.start("a", "hf:o/n")
    fetches.start("b", "hf:o/n")
    fetches.drop("a")
    fetches.drop("a")
    assert not sources.ended.acquire(timeout=0.05)
    fetches.drop("b")
    sources.wait_for_end()
    assert sources.cancelled == 1
    assert fetches.look("b") is None


def test_after_a_failure_the_next_ticket_tries_again(fetches: Fetches, sources: HeldSources) -> None:
    fetches.start("a", "hf:o/n")
    sources.arrival.set_exception(DownloadFailed("no"))
    _, error = finished(fetches, "a")
    assert isinstance(error, DownloadFailed)
    sources.arrival = Future()
    sources.arrival.set_result(None)
    fetches.start("b", "hf:o/n")
    assert finished(fetches, "b") == (FACTS, None)
    # The first one still reads what became of its own.
    assert finished(fetches, "a")[1] is error


def test_a_failure_of_no_known_kind_is_told_too(fetches: Fetches, sources: HeldSources) -> None:
    fetches.start("a", "hf:o/n")
    sources.arrival.set_exception(ZeroDivisionError("oops"))
    _, error = finished(fetches, "a")
    assert str(error) == "hf:o/n could not be fetched: ZeroDivisionError('oops')"


def test_results_that_nobody_reads_are_forgotten(
    fetches: Fetches, sources: HeldSources, clock: Clock
) -> None:
    sources.arrival.set_result(None)
    fetches.start("a", "hf:o/n")
    finished(fetches, "a")
    clock.now = KEEP_S + 1
    fetches.start("b", "hf:o/other")
    assert fetches.look("a") is None


def test_what_names_no_model_starts_nothing(fetches: Fetches, sources: HeldSources) -> None:
    with pytest.raises(InvalidRequest):
        fetches.start("a", "hf:nonsense")
    assert sources.started == []
    assert fetches.look("a") is None
