"""The load against a real endpoint with known timing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.bench.endpoint import Behaviour, Endpoint
from xgen_ray.bench import Target, Workload
from xgen_ray.bench.load import Dialect, run, run_level, warm_up
from xgen_ray.errors import EngineUnreachable, InvalidRequest, ModelNotFound, Unauthorized

QUICK = Workload(requests_per_stream=3, max_tokens=4, request_timeout_s=10, time_limit_s=20)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint().serving() as served:
        yield served


def target_of(endpoint: Endpoint, model: str = "m", api_key: str | None = None) -> Target:
    return Target(endpoint.url, model, api_key)


async def test_times_match_what_the_endpoint_really_took(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(first_s=0.06, gap_s=0.02)
    report = await run_level(target_of(endpoint), QUICK, 2)
    assert report.requests == 6
    assert report.failed == 0
    assert report.output_tokens == 24
    assert report.tokens_from == "usage"
    assert report.ttft_s is not None
    assert report.ttft_s.smallest >= 0.059
    assert report.ttft_s.p50 < 2
    assert report.gap_s is not None
    assert report.gap_s.count == 6 * 3
    assert 0 < report.gap_s.mean < 2
    assert report.end_to_end_s is not None
    assert report.end_to_end_s.smallest >= 0.119
    # Two streams of three requests each, of 0.12 s at least.
    assert report.duration_s >= 0.36
    assert report.requests_per_s == pytest.approx(6 / report.duration_s)


async def test_no_more_streams_than_asked_for_are_ever_open(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(first_s=0.02)
    await run_level(target_of(endpoint), QUICK, 5)
    assert endpoint.seen.most_at_once == 5
    assert len(endpoint.seen.bodies) == 15


async def test_progress_tells_of_every_request(endpoint: Endpoint) -> None:
    seen: list[int] = []
    await run_level(target_of(endpoint), QUICK, 2, progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_failures_are_counted_and_do_not_stop_the_level(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(fail_every=3)
    report = await run_level(target_of(endpoint), replace(QUICK, requests_per_stream=9), 1)
    assert report.errors == {"http 503": 3}
    assert report.first_error == "all slots are taken"
    assert report.requests == 6


@pytest.mark.parametrize(
    ("behaviour", "timeout_s", "error"),
    [
        (Behaviour(cut_after=2, gap_s=0.01), 10, "broken stream"),
        (Behaviour(error_event_after=2), 10, "error event"),
        (Behaviour(first_s=5.0), 0.4, "timeout"),
    ],
)
async def test_streams_that_end_badly_are_told_apart(
    endpoint: Endpoint, behaviour: Behaviour, timeout_s: float, error: str
) -> None:
    endpoint.behaviour = behaviour
    workload = replace(QUICK, requests_per_stream=1, request_timeout_s=timeout_s)
    report = await run_level(target_of(endpoint), workload, 1)
    assert report.errors == {error: 1}
    assert report.requests == 0


async def test_the_time_limit_cuts_what_is_under_way(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(first_s=30.0)
    async with asyncio.timeout(5):
        report = await run_level(target_of(endpoint), replace(QUICK, time_limit_s=0.3), 2)
    assert report.unfinished == 6
    assert report.requests == 0
    assert 0.25 < report.duration_s < 3


async def test_without_usage_the_events_are_counted(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(usage=False)
    report = await run_level(target_of(endpoint), QUICK, 1)
    assert report.tokens_from == "events"
    assert report.output_tokens == 12


async def test_usage_counts_tokens_that_share_an_event(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(tokens_per_event=2)
    report = await run_level(target_of(endpoint), QUICK, 1)
    assert report.output_tokens == 12
    assert report.gap_s is not None
    assert report.gap_s.count == 3


@pytest.mark.parametrize(
    ("refuses", "dialect"),
    [
        ((), Dialect(ignore_eos=True, usage=True)),
        (("ignore_eos",), Dialect(ignore_eos=False, usage=True)),
        (("ignore_eos", "stream_options"), Dialect(ignore_eos=False, usage=False)),
    ],
)
async def test_the_warm_up_finds_what_the_server_understands(
    endpoint: Endpoint, refuses: tuple[str, ...], dialect: Dialect
) -> None:
    endpoint.behaviour = Behaviour(refuses=refuses)
    assert await warm_up(target_of(endpoint), QUICK) == dialect


async def test_a_target_that_cannot_answer_stops_the_run_at_once(endpoint: Endpoint) -> None:
    endpoint.behaviour = Behaviour(key="right")
    with pytest.raises(Unauthorized):
        await warm_up(target_of(endpoint, api_key="wrong"), QUICK)
    with pytest.raises(ModelNotFound, match="no model of that name"):
        await warm_up(target_of(endpoint, "nobody", "right"), QUICK)
    endpoint.behaviour = Behaviour(refuses=("messages",))
    with pytest.raises(InvalidRequest, match="unknown field messages"):
        await warm_up(target_of(endpoint), QUICK)


async def test_nobody_listening_is_said_in_plain_words(silent_port: int) -> None:
    with pytest.raises(EngineUnreachable, match="Is the server running"):
        await warm_up(Target(f"http://127.0.0.1:{silent_port}", "m"), QUICK)


async def test_a_run_has_every_level_and_no_prompt_twice(endpoint: Endpoint) -> None:
    report = await run(target_of(endpoint, api_key="secret"), QUICK, [1, 3])
    assert [level.streams for level in report.levels] == [1, 3]
    assert [level.requests for level in report.levels] == [3, 9]
    measured = [body["messages"][0]["content"] for body in endpoint.seen.bodies]
    assert len(set(measured)) == len(measured)
    assert "secret" not in repr(report)


async def test_a_level_without_streams_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(InvalidRequest, match="at least one stream"):
        await run_level(target_of(endpoint), QUICK, 0)


def test_equal_seeds_ask_the_same_and_others_do_not() -> None:
    assert Workload(seed=4).prompt_of(9) == Workload(seed=4).prompt_of(9)
    assert Workload(seed=4).prompt_of(9) != Workload(seed=5).prompt_of(9)
    assert Workload(prompt="hi").prompt_of(3) == "hi"


def test_the_key_stays_out_of_sight_and_v1_may_be_given_or_not() -> None:
    assert "secret" not in repr(Target("http://h", "m", "secret"))
    for url in ("http://h", "http://h/", "http://h/v1", "http://h/v1/"):
        assert Target(url, "m").chat_url == "http://h/v1/chat/completions"


async def test_a_connection_that_was_closed_while_idle_is_replaced_and_the_clock_runs_on() -> None:
    """The second request on each connection meets a server that hangs up without a word."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (
        len(ONE_TOKEN),
        ONE_TOKEN,
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _read_request(reader)
        writer.write(answer)
        await writer.drain()
        await _read_request(reader)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        report = await run_level(Target(url, "m"), replace(QUICK, requests_per_stream=4), 1)
    assert report.requests == 4
    assert report.failed == 0
    assert report.retries == 2


ONE_TOKEN = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def _read_request(reader: asyncio.StreamReader) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        # The client is done with this connection.
        return
