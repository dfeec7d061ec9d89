"""Clients that keep a stack busy, and what became of their requests."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

import httpx

from tests.stack import Client


@dataclass
class Clients:
    """So many clients that ask one after another, until told to stop."""

    stack: Client
    model: str
    count: int
    answers: list[httpx.Response | Exception] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self.stack.chat(self.model, max_tokens=16))
            except httpx.TransportError as error:
                self.answers.append(error)

    def good(self) -> list[httpx.Response]:
        return [one for one in self.answers if isinstance(one, httpx.Response) and one.status_code == 200]

    def failed(self) -> list[object]:
        good = {id(one) for one in self.good()}
        others = [one for one in self.answers if id(one) not in good]
        return [one if isinstance(one, Exception) else one.text for one in others]

    def served_by(self) -> Counter[str]:
        return Counter(one.headers["x-xgen-pool"] for one in self.answers if isinstance(one, httpx.Response))
