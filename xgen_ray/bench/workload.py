"""What is asked, and of whom. Equal seeds give equal requests, in the same order, on every machine."""

import random
from dataclasses import dataclass, field
from typing import Any

# Short common words: about one token each in every vocabulary in use.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line"
)
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint: ``url`` is the server's root, with or without ``/v1``. The key never shows in a repr."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def chat_url(self) -> str:
        root = self.url.rstrip("/").removesuffix("/v1")
        return f"{root}/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one level: ``requests_per_stream`` for each stream, sent one after the other.

    Each request has a prompt of its own, different from the first word on, so that no prompt cache
    answers for the engine; ``prompt`` replaces them all by one text. ``time_limit_s`` bounds a level,
    ``request_timeout_s`` one request.
    """

    requests_per_stream: int = 8
    max_tokens: int = 64
    prompt_words: int = 64
    prompt: str | None = None
    seed: int = 1
    request_timeout_s: float = 120.0
    time_limit_s: float = 300.0

    def prompt_of(self, index: int) -> str:
        """Return the text of request ``index``."""
        if self.prompt is not None:
            return self.prompt
        choice = random.Random(f"{self.seed}/{index}")  # noqa: S311 - a repeatable text, nothing secret
        words = " ".join(choice.choices(_WORDS, k=self.prompt_words))
        return f"{index}: {words}. Write a long story about these words."

    def body(self, target: Target, index: int, *, ignore_eos: bool, usage: bool) -> dict[str, Any]:
        """Return the JSON body of request ``index``; the two flags are fields that not all servers know."""
        body: dict[str, Any] = {
            "model": target.model,
            "messages": [{"role": "user", "content": self.prompt_of(index)}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "seed": self.seed,
            "stream": True,
        }
        if ignore_eos:
            body["ignore_eos"] = True
        if usage:
            body["stream_options"] = {"include_usage": True}
        return body
