"""Clients that keep a stack busy, and what became of their requests."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import httpx

from tests.stack import Client

_END_S = 180.0


class Repeated:
    """Each of ``jobs`` in a thread of its own, again and again, ``pause_s`` between."""

    def __init__(self, jobs: Sequence[Callable[[], None]], pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(job,)) for job in jobs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_END_S)

    def _repeat(self, job: Callable[[], None]) -> None:
        while not self._stop.is_set():
            job()
            self._stop.wait(self._pause_s)


@dataclass(frozen=True)
class Answer:
    """What became of one request to ``model``, ``at`` (time.monotonic()); status 0: the connection broke."""

    model: str
    at: float
    took_s: float
    status: int
    text: str
    headers: Mapping[str, str]


class Traffic(Repeated):
    """A client for each of ``models``, a name counted as often as it is given; each asks again and again."""

    def __init__(self, client: Client, models: Sequence[str], *, pause_s: float = 0.0, **body: Any) -> None:
        super().__init__([partial(self._ask, model) for model in models], pause_s)
        self._client = client
        self._body = body
        self.answers: list[Answer] = []

    def failures(self, model: str | None = None, since: float = 0.0) -> list[str]:
        """Of ``model``, or of all."""
        failed = [one for one in self.answers if one.status != 200 and one.at > since]
        return [f"{one.status} {one.text[:300]}" for one in failed if model in (None, one.model)]

    def served_since(self, moment: float, model: str) -> bool:
        return any(one.at > moment and one.model == model and one.status == 200 for one in self.answers)

    def served_by(self) -> Counter[str]:
        """How many answers each pool gave."""
        return Counter(one.headers["x-xgen-pool"] for one in self.answers if one.status == 200)

    def _ask(self, model: str) -> None:
        began = time.monotonic()
        try:
            answer = self._client.chat(model, **self._body)
            status, text, headers = answer.status_code, answer.text, answer.headers
        except httpx.TransportError as error:
            status, text, headers = 0, repr(error), httpx.Headers()
        now = time.monotonic()
        self.answers.append(Answer(model, now, now - began, status, text, headers))


@dataclass(frozen=True)
class Streamed:
    """One answer: the replica that gave it, when it began and ended in Unix seconds, and its last words."""

    replica: str
    began: float
    ended: float
    last: str

    @property
    def is_whole(self) -> bool:
        return '"finish_reason":"length"' in self.last and self.last.endswith("data: [DONE]\n\n")


class Streams(Repeated):
    """So many streams of a model at once, each followed by another."""

    def __init__(self, client: Client, model: str, count: int) -> None:
        super().__init__([self._ask] * count)
        self._address = f"{client.url}/v1/chat/completions"
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 100,
            "ignore_eos": True,
            "stream": True,
        }
        self.answers: list[Streamed] = []

    def of(self, replica: str) -> list[Streamed]:
        return [answer for answer in self.answers if answer.replica == replica]

    def _ask(self) -> None:
        began, replica, text = time.time(), "", ""
        try:
            with httpx.stream("POST", self._address, json=self._body, timeout=90, trust_env=False) as answer:
                replica = answer.headers.get("x-xgen-replica", str(answer.status_code))
                for chunk in answer.iter_text():
                    text += chunk
        except httpx.TransportError as error:
            text += repr(error)
        self.answers.append(Streamed(replica, began, time.time(), text[-1000:]))
