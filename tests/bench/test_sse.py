"""Reading a streamed completion, however it is cut and whatever it holds."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgen_ray.bench.sse import Delta, EventDecoder, error_text, read_delta

STREAM = (
    b': ping\r\n\r\ndata: {"a": 1}\n\ndata:two\r\n\r\ndata: three\ndata: lines\n\nevent: x\ndata: [DONE]\n\n'
)
EVENTS = [b'{"a": 1}', b"two", b"three\nlines", b"[DONE]"]


@settings(max_examples=80)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_come_out_whole_wherever_the_network_cuts(cuts: list[int]) -> None:
    decoder = EventDecoder()
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[DONE]", Delta(done=True)),
        (b'{"choices":[{"delta":{"role":"assistant","content":null}}]}', Delta()),
        (b'{"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}', Delta(text="hi")),
        (b'{"choices":[{"delta":{"reasoning_content":"hm"}}]}', Delta(reasoning="hm")),
        (b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', Delta(finish_reason="stop")),
        (
            b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}}',
            Delta(completion_tokens=9, prompt_tokens=3),
        ),
        (b'{"error":{"message":"boom","code":500}}', Delta(error="boom")),
        (b"nonsense", Delta(error="not JSON: b'nonsense'")),
        (b"[1]", Delta(error="not a chunk: b'[1]'")),
    ],
)
def test_an_event_says_what_it_holds(data: bytes, expected: Delta) -> None:
    assert read_delta(data) == expected


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "m", "code": "c"}}, "m"),
        ({"error": {"code": "c"}}, "c"),
        ({"error": "plain"}, "plain"),
        ({"detail": "not found"}, "not found"),
        ("words", "words"),
    ],
)
def test_an_error_body_of_any_shape_has_a_text(body: object, text: str) -> None:
    assert error_text(body) == text
