"""The gateway's endpoints, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from xgen_ray.api.validation import (
    BodyRules,
    Check,
    array,
    boolean,
    filled_list,
    mapping,
    messages,
    number,
    objects,
    text,
    text_or_list,
    whole,
)
from xgen_ray.models.types import ModelTask

MODELS_PATH = "/v1/models"
HEALTH_PATH = "/health"

GENERATE = frozenset({ModelTask.GENERATE.value})
EMBED = frozenset({ModelTask.EMBED.value})
# vLLM ranks with embedding models too; llama-server says 501 itself when it cannot.
RANK = frozenset({ModelTask.RERANK.value, ModelTask.EMBED.value})
ANY_TASK: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """One kind of request for an engine.

    ``paths`` are what clients call, ``upstream`` is what the engine calls it. ``tasks`` are the models
    that can do it (empty: all). ``events_have_types``: an error in the stream is an ``event: error``
    with an outer ``type``, as in Anthropic's and OpenAI's newer protocol.
    """

    paths: tuple[str, ...]
    upstream: str
    tasks: frozenset[str]
    rules: BodyRules
    events_have_types: bool = False


_SAMPLING: Mapping[str, Check] = MappingProxyType(
    {
        "stream": boolean,
        "stream_options": mapping,
        "n": whole(1),
        "max_tokens": whole(0),
        "max_completion_tokens": whole(0),
        "max_output_tokens": whole(0),
        "temperature": number(0),
        "top_p": number(0, 1),
        "presence_penalty": number(),
        "frequency_penalty": number(),
        "tools": objects,
    }
)

ROUTES: tuple[Route, ...] = (
    Route(
        ("/v1/chat/completions",),
        "/v1/chat/completions",
        GENERATE,
        BodyRules({"messages": messages}, _SAMPLING),
    ),
    Route(
        ("/v1/completions",),
        "/v1/completions",
        GENERATE,
        BodyRules(optional={"prompt": text_or_list, **_SAMPLING}, one_of=("prompt", "prompt_embeds")),
    ),
    Route(
        ("/v1/responses",),
        "/v1/responses",
        GENERATE,
        BodyRules({"input": text_or_list}, _SAMPLING),
        events_have_types=True,
    ),
    Route(
        ("/v1/messages",),
        "/v1/messages",
        GENERATE,
        BodyRules({"messages": messages}, _SAMPLING),
        events_have_types=True,
    ),
    Route(
        ("/v1/messages/count_tokens",),
        "/v1/messages/count_tokens",
        GENERATE,
        BodyRules({"messages": messages}),
        events_have_types=True,
    ),
    Route(
        ("/v1/embeddings",),
        "/v1/embeddings",
        EMBED,
        # vLLM embeds messages, too: text with pictures.
        BodyRules(
            optional={
                "input": text_or_list,
                "messages": messages,
                "encoding_format": text,
                "dimensions": whole(1),
            },
            one_of=("input", "messages"),
        ),
    ),
    Route(
        ("/v1/rerank", "/rerank", "/v1/reranking"),
        "/v1/rerank",
        RANK,
        BodyRules({"query": text, "documents": filled_list}, {"top_n": whole(0)}),
    ),
    Route(
        ("/v1/score", "/score"),
        "/v1/score",
        RANK,
        # vLLM's own, with three names for the pairs.
        BodyRules(one_of=("text_1", "queries", "data_1")),
    ),
    Route(
        ("/tokenize", "/v1/tokenize"),
        "/tokenize",
        ANY_TASK,
        # vLLM also takes messages, and applies the chat template.
        BodyRules(
            optional={"messages": messages},
            one_of=("content", "prompt", "messages"),
            mirror=("content", "prompt"),
        ),
    ),
    Route(
        ("/detokenize", "/v1/detokenize"),
        "/detokenize",
        ANY_TASK,
        BodyRules({"tokens": array}),
    ),
)

BY_PATH: Mapping[str, Route] = MappingProxyType({path: route for route in ROUTES for path in route.paths})


def methods_of(path: str) -> tuple[str, ...]:
    """The methods that ``path`` takes; empty if there is no such path."""
    if path in BY_PATH:
        return ("POST", "OPTIONS")
    if path in (HEALTH_PATH, MODELS_PATH) or path.startswith(MODELS_PATH + "/"):
        return ("GET", "HEAD", "OPTIONS")
    return ()
