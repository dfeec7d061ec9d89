"""Calls in threads that do not keep the process alive."""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> Future[T]:
    """Run ``call`` in a thread that keeps no one waiting, not even the end of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="model-hub").start()
    return future


def for_each(items: Iterable[T], action: Callable[[T], None], stop: threading.Event, threads: int) -> bool:
    """Do ``action`` for all ``items``, a few at a time; False if ``stop`` was set before all were done.

    The first failure sets ``stop`` for the others and is raised.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def work() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            action(item)

    workers = [in_thread(work) for _ in range(min(threads, todo.qsize()))]
    done, _ = wait(workers, return_when=FIRST_EXCEPTION)
    failures = [failure for worker in done if (failure := worker.exception()) is not None]
    if failures:
        stop.set()
        raise failures[0]
    return not stop.is_set()
