"""A conversation: what was said so far, and one streamed answer with its times."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from xgen_ray.cli.client import Server
from xgen_ray.cli.exits import CommandError, ExitCode


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``tokens`` is the server's count, else that of text events; a stopped answer has
    ``finish_reason`` ``stopped``. ``tokens_per_s`` is None when there was no time between two tokens.
    """

    text: str
    tokens: int
    prompt_tokens: int | None
    ttft_s: float | None
    total_s: float
    tokens_per_s: float | None
    finish_reason: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self) -> str:
        """Return the times in a line for people."""
        parts = [f"{self.tokens} tokens"]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        if self.ttft_s is not None:
            parts.append(f"first after {self.ttft_s:.2f} s")
        if self.finish_reason not in (None, "stop"):
            parts.append(str(self.finish_reason))
        return ", ".join(parts)


@dataclass(slots=True)
class Conversation:
    """Owns the messages. ``settings`` are sampling fields that go with every request."""

    server: Server
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages.clear()

    def say(self, text: str, show: Callable[[str], None]) -> Answer:
        """Say ``text`` and pass the answer to ``show`` as it comes.

        A keyboard interrupt stops the answer: what had come is kept and returned. A failed request
        leaves the conversation as it was.
        """
        opening = [{"role": "system", "content": self.system}] if self.system else []
        question = {"role": "user", "content": text}
        body = {
            "model": self.model,
            "messages": [*opening, *self.messages, question],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.settings,
        }
        answer = self._stream(body, show)
        if answer.text:
            self.messages += [question, {"role": "assistant", "content": answer.text}]
        return answer

    def _stream(self, body: dict[str, Any], show: Callable[[str], None]) -> Answer:
        started = time.monotonic()
        pieces: list[str] = []
        times: list[float] = []
        tokens = prompt_tokens = None
        finish_reason = None
        try:
            with closing(self.server.chat(body)) as deltas:
                for delta in deltas:
                    if delta.error is not None:
                        message = f"The answer broke off: {delta.error}"
                        raise CommandError(ExitCode.FAILED, message)
                    if delta.says_something:
                        times.append(time.monotonic())
                        pieces.append(delta.text)
                        show(delta.reasoning or delta.text)
                    finish_reason = delta.finish_reason or finish_reason
                    tokens = delta.completion_tokens or tokens
                    prompt_tokens = delta.prompt_tokens or prompt_tokens
        except KeyboardInterrupt:
            finish_reason = "stopped"
        ended = time.monotonic()
        if finish_reason is None:
            raise CommandError(ExitCode.FAILED, "The stream ended before the answer did. Try again.")
        count = len(times) if tokens is None else tokens
        span = times[-1] - times[0] if len(times) > 1 else 0.0
        return Answer(
            text="".join(pieces),
            tokens=count,
            prompt_tokens=prompt_tokens,
            ttft_s=times[0] - started if times else None,
            total_s=ended - started,
            tokens_per_s=(count - 1) / span if span > 0 and count > 1 else None,
            finish_reason=finish_reason,
        )
