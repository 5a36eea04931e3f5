"""The load test: what it times, counts and refuses, on a loop whose time is virtual, so that nothing sleeps."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from genopt.console.load import LoadLine, print_load_test
from genopt.errors import SpecError
from genopt.measure.arrivals import arrivals
from genopt.measure.load_client import LoadClient, Sample
from genopt.measure.load_plot import load_plot
from genopt.measure.load_result import LoadResult, goodput, result_of, summarize
from genopt.measure.load_spec import LoadSpec, build, made_prompts
from genopt.measure.load_test import measure
from genopt.measure.load_transport import open_client
from genopt.measure.prompts import Message, Prompt

URL = "http://server"
DONE = b"data: [DONE]\n\n"
Part = tuple[float, bytes | Exception]
Answer = Callable[[httpx.Request, int], "httpx.Response | list[Part]"]


class VirtualSelector(selectors.SelectSelector):
    """Never waits: where the loop would, time jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits and nothing is due"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time; `block` stands for a computation that holds it up."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def block(self, seconds: float) -> None:
        self._virtual.now += seconds


def play(scenario: Callable[[VirtualLoop], Coroutine[Any, Any, Any]]) -> Any:
    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(scenario(loop))


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def text(piece: str = "word ", finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": finish}]})


def usage(completion: int, prompt: int = 9) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}})


def stream(first: float = 0.1, gap: float = 0.02, chunks: int = 5, tokens: int | None = None) -> list[Part]:
    """A whole answer; with usage of as many tokens as chunks unless told otherwise."""
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
    texts = [(first if number == 0 else gap, text()) for number in range(chunks)]
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    return [(0.0, role), *texts, (0.0, end), (0.0, usage(chunks if tokens is None else tokens)), (0.0, DONE)]


class Parts(httpx.AsyncByteStream):
    def __init__(self, parts: list[Part], ended: Callable[[], None]) -> None:
        self._parts = parts
        self._ended = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for delay, part in self._parts:
            await asyncio.sleep(delay)
            if isinstance(part, Exception):
                raise part
            yield part

    async def aclose(self) -> None:
        self._ended()


class Server(httpx.AsyncBaseTransport):
    """Answers chat requests number 0, 1, ... as told, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.in_flight = self.peak = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(await request.aread()))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            found = self._answer(request, len(self.bodies) - 1)
        except BaseException:
            self._ended()
            raise
        if isinstance(found, httpx.Response):
            self._ended()
            return found
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Parts(found, self._ended))

    def _ended(self) -> None:
        self.in_flight -= 1


def run(
    server: Server, *, cpu: float = 0.1, prompts: Callable[[int], Prompt] = "prompt {}".format, different: int | None = None, **values: Any
) -> LoadResult:
    spec = build({"url": URL, "concurrency": ["2"] if "rate" not in values else None, "requests": 4, **values})

    async def scenario(loop: VirtualLoop) -> LoadResult:
        async with open_client(key=None, transport=server) as http:
            client = LoadClient(http, spec.url, timeout_s=spec.timeout, clock=loop.time, stream=spec.stream)
            levels = [level async for level in measure(
                spec, client, prompts, model="first", clock=loop.time, cpu_clock=lambda: cpu * loop.time()
            )]  # fmt: skip
        return result_of(levels, spec, model="first", different=different)

    return play(scenario)


def ask(
    parts: httpx.Response | list[Part] | Exception, *, times: Iterator[float] | None = None, timeout_s: float = 5.0, streamed: bool = True
) -> Sample:
    """One request alone; `times` replaces the clock."""

    def answer(request: httpx.Request, number: int) -> httpx.Response | list[Part]:
        if isinstance(parts, Exception):
            raise parts
        return parts

    async def scenario(loop: VirtualLoop) -> Sample:
        clock = loop.time if times is None else lambda: next(times)
        async with open_client(key=None, transport=Server(answer)) as http:
            client = LoadClient(http, URL, timeout_s=timeout_s, clock=clock, stream=streamed)
            return await client.ask("hi", model="m", max_tokens=8, index=3, since=0.0)

    return play(scenario)


def sample(**values: Any) -> Sample:
    return Sample.model_validate({"index": 0, "sent_s": 0.0, "tokens": 5, "ttft_ms": 100.0, "tpot_ms": 20.0, "e2el_ms": 180.0, **values})


# One request


def test_times_are_taken_from_chunks_with_text_and_the_count_from_usage() -> None:
    found = ask(stream(first=0.1, gap=0.02, chunks=5, tokens=9))
    assert (found.error, found.index, found.tokens, found.prompt_tokens, found.with_usage) == (None, 3, 9, 9, True)
    assert (found.ttft_ms, found.e2el_ms) == (pytest.approx(100), pytest.approx(180))
    assert found.tpot_ms == pytest.approx(80 / 8)
    assert found.itl_ms == pytest.approx([20] * 4)


def test_a_stall_shows_in_the_gaps() -> None:
    found = ask([(0.1, text()), (0.02, text()), (0.5, text()), (0.02, text(finish="stop")), (0.0, DONE)])
    assert found.itl_ms == pytest.approx([20, 500, 20])


def test_without_usage_chunks_are_counted_and_the_sample_says_so() -> None:
    found = ask([(0.1, text()), (0.02, text()), (0.02, text(finish="length")), (0.0, DONE)])
    assert (found.tokens, found.with_usage, found.prompt_tokens) == (3, False, None)
    assert found.tpot_ms == pytest.approx(20)


def test_one_token_has_no_time_per_token() -> None:
    found = ask(stream(chunks=1))
    assert (found.error, found.tokens, found.tpot_ms, found.itl_ms) == (None, 1, None, ())
    assert found.ttft_ms == found.e2el_ms == pytest.approx(100)


def test_text_that_comes_all_at_once_has_no_time_per_token() -> None:
    assert ask(stream(chunks=1, tokens=50)).tpot_ms is None


def test_usage_that_is_nonsense_is_ignored() -> None:
    nonsense = event({"choices": [], "usage": {"completion_tokens": 0, "prompt_tokens": "x"}})
    parts: list[Part] = [(0.1, text()), (0.1, text()), (0.0, nonsense), (0.0, DONE)]
    assert (ask(parts).tokens, ask(parts).with_usage) == (2, False)


def test_reasoning_counts_as_text() -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    assert ask([(0.1, thought), (0.1, text(finish="stop")), (0.0, DONE)]).ttft_ms == pytest.approx(100)


def test_comments_and_other_fields_of_events_are_ignored() -> None:
    parts: list[Part] = [(0.0, b": ping\n\nevent: message\nid: 4\n"), (0.1, text().replace(b"\n", b"\r\n")), (0.0, DONE)]
    assert ask(parts).error is None


@given(cuts=st.lists(st.integers(0, 10_000), max_size=40))
@settings(max_examples=30, deadline=None)
def test_where_the_network_cuts_the_stream_changes_no_count(cuts: list[int]) -> None:
    whole = b"".join(part for _, part in stream(chunks=7) if isinstance(part, bytes))
    places = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    parts: list[Part] = [(0.01, whole[start:end]) for start, end in itertools.pairwise(places)]
    found = ask(parts)
    assert (found.error, found.tokens, found.with_usage) == (None, 7, True)


BROKEN: dict[str, tuple[httpx.Response | list[Part] | Exception, str]] = {
    "refused": (httpx.ConnectError("refused"), "connection"),
    "closed before the answer": (httpx.RemoteProtocolError("Server disconnected"), "connection"),
    "slow to connect": (httpx.ConnectTimeout("slow"), "timeout"),
    "never ends": ([(0.1, text()), (1000.0, text())], "timeout"),
    "429": (httpx.Response(429, json={"error": {"message": "over the limit"}}), "http_429"),
    "404": (httpx.Response(404, json={"error": {"message": "unknown model"}}), "http_4xx"),
    "503": (httpx.Response(503, text="busy"), "http_5xx"),
    "redirect": (httpx.Response(307, headers={"location": "http://elsewhere"}), "http_other"),
    "connection lost": ([(0.1, text()), (0.1, httpx.ReadError("gone"))], "ended_midway"),
    "an error in the stream": ([(0.1, text()), (0.1, event({"error": {"message": "engine died"}})), (0.0, DONE)], "ended_midway"),
    "no end": ([(0.1, text()), (0.1, text())], "ended_midway"),
    "nothing": ([], "ended_midway"),
    "no text": ([(0.1, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})), (0.0, DONE)], "no_tokens"),
    "no text but usage": ([(0.1, usage(5)), (0.0, DONE)], "no_tokens"),
    "not JSON": ([(0.1, text()), (0.1, b"data: {broken\n\n"), (0.0, DONE)], "bad_stream"),
    "not UTF-8": ([(0.1, b'data: {"a": "\xff\xfe"}\n\n'), (0.0, DONE)], "bad_stream"),
    "a list": ([(0.1, b"data: [1, 2]\n\n"), (0.0, DONE)], "bad_stream"),
    "choices of numbers": ([(0.1, b'data: {"choices": [1]}\n\n'), (0.0, DONE)], "bad_stream"),
    "a page": ([(0.1, b"<html>\n<body>hello</body></html>")], "bad_stream"),
    "an answer in one piece": ([(0.1, b'{"choices": [{"message": {"content": "x"}}]}')], "bad_stream"),
    "bad compression": (httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Parts([(0.0, b"plain")], lambda: None)), "bad_stream"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_what_goes_wrong_is_named_and_has_no_times(kind: str) -> None:
    parts, name = BROKEN[kind]
    found = ask(parts)
    assert (found.error, found.tokens, found.ttft_ms, found.e2el_ms, found.tpot_ms) == (name, None, None, None, None)


SAID = {"404": "unknown model", "503": "busy", "an error in the stream": "engine died", "a page": "<html>"}


@pytest.mark.parametrize(("kind", "said"), SAID.items())
def test_what_the_server_said_about_an_error_is_kept(kind: str, said: str) -> None:
    assert said in ask(BROKEN[kind][0]).detail


@pytest.mark.parametrize("times", [[5.0, 4.9, 5.1, 5.2], [5.0, 5.2, 5.1, 5.3], [5.0, 5.1, 5.3, 5.2]])
def test_a_clock_that_goes_backwards_costs_the_sample(times: list[float]) -> None:
    parts: list[Part] = [(0.0, text()), (0.0, text()), (0.0, text(finish="stop"))]
    assert ask(parts, times=iter(times)).error == "clock"


def test_two_chunks_at_the_same_time_are_no_clock_error() -> None:
    found = ask([(0.1, text() + text(finish="stop")), (0.0, DONE)])
    assert (found.error, found.itl_ms, found.tpot_ms) == (None, (0.0,), 0.0)


# Whole answers


def whole(content: str = "some words", **more: Any) -> httpx.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return httpx.Response(200, json={"choices": [choice], **more})


def test_a_whole_answer_has_one_time_and_the_usages_count() -> None:
    found = ask(whole(usage={"completion_tokens": 7, "prompt_tokens": 3}), streamed=False)
    assert (found.error, found.tokens, found.prompt_tokens, found.with_usage) == (None, 7, 3, True)
    assert found.e2el_ms is not None
    assert (found.ttft_ms, found.tpot_ms, found.itl_ms) == (None, None, ())


def test_the_tokens_of_a_whole_answer_without_usage_are_not_guessed() -> None:
    content = whole().content
    result = run(Server(lambda request, number: [(0.5, content)]), stream=False)
    assert {found.tokens for found in result.levels[0].samples} == {None}
    assert {"output_tok_s", "output_tokens", "ttft_ms", "itl_ms"}.isdisjoint(result.levels[0].metrics)
    assert result.levels[0].metrics["e2el_ms"].n == result.levels[0].metrics["requests_s"].n == 4
    assert any("4 answers came without usage; their tokens are not known" in note for note in result.notes)


@pytest.mark.parametrize(("answer", "name"), [
    (whole(""), "no_tokens"), (httpx.Response(200, json={"choices": []}), "bad_answer"), (httpx.Response(200, json=[1]), "bad_answer"),
    (httpx.Response(200, json={"choices": [{"message": None}]}), "bad_answer"), (httpx.Response(200, text="<html>"), "bad_answer"),
    (httpx.Response(200), "bad_answer"),
])  # fmt: skip
def test_what_is_no_whole_answer_is_named(answer: httpx.Response, name: str) -> None:
    assert ask(answer, streamed=False).error == name


def test_a_stream_is_asked_for_unless_told_otherwise() -> None:
    streaming, plain = Server(lambda request, number: stream()), Server(lambda request, number: whole())
    run(streaming)
    run(plain, stream=False)
    assert (streaming.bodies[0]["stream"], streaming.bodies[0]["stream_options"]) == (True, {"include_usage": True})
    assert "stream" not in plain.bodies[0]
    assert {body["temperature"] for body in (*streaming.bodies, *plain.bodies)} == {0}


def test_a_conversation_is_sent_as_it_is() -> None:
    server = Server(lambda request, number: stream())
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"))
    run(server, prompts=lambda index: turns)
    assert server.bodies[0]["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


# The loops


@given(streams=st.integers(1, 6), extra=st.integers(0, 12), delays=st.lists(st.floats(0.001, 2.0), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_the_closed_loop_keeps_its_workers_busy_and_is_never_above_them(streams: int, extra: int, delays: list[float]) -> None:
    server = Server(lambda request, number: stream(first=delays[number % len(delays)]))
    level = run(server, concurrency=[streams], requests=streams + extra).levels[0]
    assert server.peak == level.peak_in_flight == streams
    assert (level.sent, level.succeeded, level.concurrency, level.rate) == (streams + extra, streams + extra, streams, None)


def test_a_worker_sends_the_next_request_when_the_former_has_ended() -> None:
    level = run(Server(lambda request, number: stream(first=0.1, gap=0.1, chunks=10)), concurrency=["2"], requests=6).levels[0]
    assert [found.sent_s for found in level.samples] == pytest.approx([0, 0, 1, 1, 2, 2])
    assert level.wall_s == pytest.approx(3)
    assert level.metrics["output_tok_s"].value == pytest.approx(60 / 3)
    assert level.metrics["requests_s"].value == pytest.approx(2)


def test_arrivals_of_the_open_loop_wait_for_no_answer() -> None:
    level = run(Server(lambda request, number: stream(first=50.0)), rate=[10.0], requests=20, seed=4).levels[0]
    expected = list(itertools.islice(arrivals("poisson", 10.0, seed=4), 20))
    assert [found.sent_s for found in sorted(level.samples, key=lambda found: found.sent_s)] == pytest.approx(expected)
    assert (level.peak_in_flight, level.succeeded, level.concurrency, level.rate) == (20, 20, None, 10.0)
    assert level.wall_s == pytest.approx(50.08 + expected[-1] - expected[0])


@given(rate=st.floats(0.1, 100), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_arrivals_are_seeded_and_poisson(rate: float, seed: int) -> None:
    times = list(itertools.islice(arrivals("poisson", rate, seed=seed), 2000))
    assert times == list(itertools.islice(arrivals("poisson", rate, seed=seed), 2000))
    assert times != list(itertools.islice(arrivals("poisson", rate, seed=seed + 1), 2000))
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) >= 0
    # Five standard errors of the mean; the deviation of exponential gaps equals their mean.
    assert mean * rate == pytest.approx(1, abs=5 / len(gaps) ** 0.5)
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.3)


@pytest.mark.parametrize("load", [{"concurrency": ["2"]}, {"rate": [5.0]}])
def test_a_duration_ends_the_sending_and_what_is_under_way_is_waited_for(load: dict[str, Any]) -> None:
    level = run(Server(lambda request, number: stream(first=0.5)), requests=None, duration="3s", **load).levels[0]
    assert max(found.sent_s for found in level.samples) < 3
    assert max(found.sent_s for found in level.samples) > 2
    assert level.sent == level.succeeded == len(level.samples) > 5


def test_the_warm_up_is_kept_apart() -> None:
    server = Server(lambda request, number: httpx.Response(503) if number < 3 else stream())
    level = run(server, concurrency=["3"], requests=5).levels[0]
    assert (level.warm_up, level.warm_up_errors, level.sent, level.errors) == (3, {"http_5xx": 3}, 5, {})
    assert [body["max_tokens"] for body in server.bodies] == [8] * 3 + [64] * 5


def test_no_prompt_is_sent_twice_even_by_another_level() -> None:
    server = Server(lambda request, number: stream())
    result = run(server, concurrency=["1", "3"], requests=4)
    sent = [body["messages"][0]["content"] for body in server.bodies]
    assert len(sent) == len(set(sent)) == 4 + 4 + 1 + 3
    assert [level.name for level in result.levels] == ["1 at once", "3 at once"]


def test_a_worker_pauses_after_a_refusal() -> None:
    server = Server(lambda request, number: httpx.Response(429) if number < 20 else stream())
    level = run(server, concurrency=["1"], requests=None, duration=10).levels[0]
    assert level.errors == {"http_429": 19}
    assert min(found.sent_s for found in level.samples if found.error is None) == pytest.approx(1.9)


@pytest.mark.parametrize(("header", "pause"), [
    ("2", 2.0), ("0.5", 0.5), ("0", 0.1), ("-1", 0.1), ("86400", 10.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.1), ("nan", 0.1),
])  # fmt: skip
def test_a_worker_waits_as_long_as_the_server_asks_up_to_a_bound(header: str, pause: float) -> None:
    server = Server(lambda request, number: httpx.Response(429, headers={"retry-after": header}) if number < 3 else stream())
    level = run(server, concurrency=["1"], requests=4).levels[0]
    assert [found.sent_s for found in level.samples] == pytest.approx([0, pause, 2 * pause, 2 * pause + 0.18])


def test_arrivals_wait_for_no_server() -> None:
    server = Server(lambda request, number: httpx.Response(429, headers={"retry-after": "9"}) if number else stream())
    level = run(server, rate=[10.0], requests=20).levels[0]
    assert level.errors == {"http_429": 20}
    assert max(found.sent_s for found in level.samples) < 5


# What comes of it


def test_errors_are_counted_apart_and_by_name() -> None:
    def answer(request: httpx.Request, number: int) -> httpx.Response | list[Part]:
        return (httpx.Response(429, json={"error": {"message": "slow down"}}), [(0.1, text())], stream())[number % 3]

    level = run(Server(answer), concurrency=["1"], requests=9).levels[0]
    assert level.errors == {"ended_midway": 3, "http_429": 3}
    assert (level.sent, level.succeeded) == (9, 3)
    assert level.examples["http_429"] == "429: slow down"
    assert {name: found.n for name, found in level.metrics.items() if name != "itl_ms"} == dict.fromkeys(level.metrics.keys() - {"itl_ms"}, 3)
    assert level.metrics["itl_ms"].n == sum(len(found.itl_ms) for found in level.samples) == 3 * 4


def test_answers_without_usage_are_counted_and_noted() -> None:
    result = run(Server(lambda request, number: [(0.1, text()), (0.1, text()), (0.0, DONE)]))
    assert result.levels[0].without_usage == 4
    assert any("without usage" in note for note in result.notes)
    assert "prompt_tokens" not in result.levels[0].metrics


def test_a_metric_without_samples_is_absent() -> None:
    level = run(Server(lambda request, number: stream(chunks=1))).levels[0]
    assert {"tpot_ms", "itl_ms", "itl_max_ms"}.isdisjoint(level.metrics)
    assert level.metrics["ttft_ms"].n == 4


SAMPLES = st.lists(st.builds(
    lambda ttft, rest, tokens, error: sample(
        ttft_ms=None if error else ttft, e2el_ms=None if error else ttft + rest, tokens=0 if error else tokens, error=error,
        tpot_ms=None if error or tokens == 1 else rest / (tokens - 1)),
    st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 50), st.sampled_from([None, None, None, "timeout", "http_429"]),
), max_size=20)  # fmt: skip


@given(samples=SAMPLES, wall_s=st.floats(0, 100))
@settings(max_examples=50, deadline=None)
def test_every_metric_says_how_many_samples_it_has(samples: list[Sample], wall_s: float) -> None:
    good = [found for found in samples if found.error is None]
    metrics = summarize(samples, wall_s, seed=0)
    for name in ("ttft_ms", "tpot_ms", "e2el_ms"):
        count = sum(getattr(found, name) is not None for found in good)
        assert (metrics[name].n if count else None) == (count or None) == (metrics[name].n if name in metrics else None)
    assert ("output_tok_s" in metrics) == (bool(good) and wall_s > 0)


@given(samples=SAMPLES.filter(bool), ttft=st.floats(0.001, 10), e2el=st.floats(0.001, 10), share=st.floats(0.1, 1))
@settings(max_examples=50, deadline=None)
def test_a_stricter_limit_never_gives_more_goodput(samples: list[Sample], ttft: float, e2el: float, share: float) -> None:
    loose = goodput(samples, {"ttft": ttft, "e2el": e2el}, 2.0)
    strict = goodput(samples, {"ttft": ttft * share, "e2el": e2el, "tpot": 1.0}, 2.0)
    assert loose is not None
    assert strict is not None
    assert 0 <= strict.good <= loose.good <= sum(found.error is None for found in samples)
    assert loose.share == loose.good / len(samples)
    assert loose.requests_s == loose.good / 2.0


def test_goodput_counts_requests_that_meet_every_limit_out_of_all_sent() -> None:
    samples = [sample(), sample(ttft_ms=301.0), sample(tpot_ms=31.0), sample(tpot_ms=None, tokens=1), sample(error="http_429"), sample(e2el_ms=9e3)]
    found = goodput(samples, {"ttft": 0.3, "tpot": 0.03, "e2el": 5.0}, wall_s=4.0)
    assert found is not None
    assert (found.good, found.share, found.requests_s) == (2, 2 / 6, 0.5)
    assert goodput(samples, {}, 4.0) is None


def test_goodput_of_a_run_is_in_its_level() -> None:
    level = run(Server(lambda request, number: stream(first=0.1 if number % 2 else 0.4)), slo="ttft=300ms,tpot=30ms,e2el=5s").levels[0]
    assert level.goodput is not None
    assert level.goodput.share == 0.5


# The client itself


def test_an_idle_client_is_not_saturated() -> None:
    result = run(Server(lambda request, number: stream()))
    assert not result.client_saturated
    assert result.levels[0].client.cpu_share == pytest.approx(0.1)
    assert result.levels[0].client.lag_p99_ms == pytest.approx(0, abs=1e-6)


def test_a_busy_processor_is_said_to_saturate_the_client() -> None:
    result = run(Server(lambda request, number: stream()), cpu=0.85)
    assert result.client_saturated
    assert any("85% of one core" in note and "may be the client's" in note for note in result.notes)


def test_a_late_event_loop_is_said_to_saturate_the_client() -> None:
    async def scenario(loop: VirtualLoop) -> LoadResult:
        def answer(request: httpx.Request, number: int) -> list[Part]:
            loop.block(0.05)
            return stream()

        spec = build({"url": URL, "concurrency": ["2"], "requests": 40})
        async with open_client(key=None, transport=Server(answer)) as http:
            client = LoadClient(http, URL, timeout_s=9.0, clock=loop.time)
            levels = [level async for level in measure(spec, client, str, model="m", clock=loop.time, cpu_clock=lambda: 0.0)]
        return result_of(levels, spec, model="m", different=None)

    result = play(scenario)
    assert result.client_saturated
    assert result.levels[0].client.lag_p99_ms > 10


# The spec and the prompts


@pytest.mark.parametrize(("values", "words"), [
    ({"url": "server:8000"}, "not a web address"),
    ({"url": "ftp://server"}, "not a web address"),
    ({"url": "http://me:secret@server"}, "--api-key-env"),
    ({"slo": "ttft"}, "not a limit"),
    ({"slo": "ttft_p99=300ms"}, "use ttft, tpot and e2el"),
    ({"slo": "ttft=fast"}, "not a duration"),
    ({"slo": "ttft=0s"}, "--slo"),
    ({"concurrency": ["0"]}, "--concurrency"),
    ({"concurrency": ["a"]}, "--concurrency"),
    ({"concurrency": []}, "at least one number"),
    ({"concurrency": ["1"], "rate": ["2"]}, "give one of the two"),
    ({"rate": ["0"]}, "--rate"),
    ({"rate": ["inf"]}, "--rate"),
    ({"rate": ["fast"]}, "--rate"),
    ({"requests": 0}, "--requests"),
    ({"requests": 4, "concurrency": ["8"]}, "raise --requests"),
    ({"duration": "soon"}, "--duration"),
    ({"duration": "0s"}, "--duration"),
    ({"max_tokens": 0}, "--max-tokens"),
])  # fmt: skip
def test_a_bad_value_is_a_usage_error(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        build({"url": URL, **values})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("url", "base"), [
    ("http://a:8000", "http://a:8000"), ("http://a:8000/", "http://a:8000"), ("http://a/v1", "http://a"), ("https://a/v1/", "https://a"),
    ("http://a/proxy/v1", "http://a/proxy"), ("http://[::1]:8000/v1", "http://[::1]:8000"),
])  # fmt: skip
def test_the_base_url_comes_with_or_without_v1(url: str, base: str) -> None:
    assert build({"url": url}).url == base


def test_defaults_are_three_closed_levels_of_64_requests() -> None:
    spec = build({"url": URL})
    assert (spec.concurrency, spec.rate, spec.requests, spec.duration) == ((1, 8, 32), (), 64, None)
    assert build({"url": URL, "concurrency": ["128"]}).requests == 128
    assert build({"url": URL, "duration": "30s"}).requests is None
    assert build({"url": URL, "requests": 10}).concurrency == (1, 8)
    assert (build({"url": URL, "rate": ["2.5", "5"]}).concurrency, build({"url": URL, "rate": [2.5]}).requests) == ((), 64)
    assert LoadSpec.model_validate_json(spec.model_dump_json()) == spec


def test_made_prompts_are_seeded_different_and_about_as_long_as_asked() -> None:
    prompts = made_prompts(100, seed=1)
    made = [prompts(index) for index in range(50)]
    assert made == [made_prompts(100, seed=1)(index) for index in range(50)]
    assert len(set(made)) == 50
    assert made[0] != made_prompts(100, seed=2)(0)
    assert {len(prompt.split()) for prompt in made} == {70 + 6}


# What is shown


def printed(result: LoadResult) -> str:
    screen = io.StringIO()
    print_load_test(result, Console(file=screen, width=132))
    return screen.getvalue()


def test_the_table_has_every_level_and_what_each_time_means() -> None:
    shown = printed(run(Server(lambda request, number: stream()), concurrency=["1", "2"], slo="ttft=1s"))
    for words in (
        "first at http://server", "1 at once", "2 at once", "100.0%", "4 (1 at once), 4 (2 at once)", "TTFT: send to the first chunk",
        "TPOT: (E2EL - TTFT)/(n - 1)", "ITL: gap between two chunks", "E2EL: send to the last chunk", "goodput: requests that meet every limit",
    ):  # fmt: skip
        assert words in shown
    assert "the first of them said" not in shown


def test_the_table_has_errors_by_name_and_only_the_times_that_there_are() -> None:
    content = whole().content
    server = Server(lambda request, number: httpx.Response(503, text="busy") if number == 3 else [(0.5, content)])
    shown = printed(run(server, stream=False))
    for words in ("http_5xx", "503: busy", "E2EL", "answers in one piece"):
        assert words in shown
    for words in ("TTFT", "ITL", "goodput"):
        assert words not in shown


def test_a_level_that_was_not_kept_busy_is_noted() -> None:
    busy = run(Server(lambda request, number: stream()), concurrency=["2"], requests=10)
    assert not any("under way on average" in note for note in busy.notes)
    assert busy.levels[0].mean_in_flight == pytest.approx(2, rel=0.01)
    ragged = run(Server(lambda request, number: stream(first=5.0 if number == 4 else 0.1)), concurrency=["4"], requests=4)
    assert ragged.levels[0].mean_in_flight == pytest.approx((3 * 0.18 + 5.08) / 5.08, rel=0.01)
    assert any("4 at once: only 1.1 requests were under way on average" in note for note in ragged.notes)


def test_progress_is_one_line_per_level_in_a_log() -> None:
    screen = io.StringIO()
    with LoadLine(Console(file=screen, width=100)) as line:
        for done in range(3):
            line("8 at once", done=done, of=64, failed=0, in_flight=8)
        line("16 at once", done=0, of=None, failed=0, in_flight=0)
    assert screen.getvalue().splitlines() == ["8 at once", "16 at once"]


def test_progress_is_one_moving_line_on_a_terminal() -> None:
    screen = io.StringIO()
    with LoadLine(Console(file=screen, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})) as line:
        line("8 at once", done=3, of=64, failed=1, in_flight=8)
    assert "8 at once: 3 of 64 requests ended, 8 under way, 1 failed" in screen.getvalue()


def test_the_plot_is_the_same_for_the_same_result_and_shows_each_level() -> None:
    result = run(Server(lambda request, number: stream()), concurrency=["1", "2"])
    drawing = load_plot(result).decode()
    assert drawing == load_plot(result).decode()
    assert drawing.startswith("<?xml")
    for words in ("1 at once", "2 at once", "Output tokens per second", "p99"):
        assert words in drawing


def test_arrivals_that_were_not_answered_meanwhile_are_noted() -> None:
    swamped = run(Server(lambda request, number: stream(first=3.0 + number)), rate=[10.0], requests=20)
    assert any("10 per s: only 0." in note and "requests a second were answered" in note for note in swamped.notes)
    assert not any("were answered" in note for note in run(Server(lambda request, number: stream()), rate=[1.0], requests=50).notes)


def test_a_plot_without_tpot_says_so() -> None:
    assert "not measured" in load_plot(run(Server(lambda request, number: stream(chunks=1)))).decode()


def test_a_plot_of_whole_answers_has_their_latency_and_its_limit() -> None:
    answer = whole(usage={"completion_tokens": 7})
    drawing = load_plot(run(Server(lambda request, number: [(0.5, answer.content)]), stream=False, slo="e2el=1s")).decode()
    assert "End-to-end latency" in drawing
    assert "limit" in drawing
    assert "TTFT" not in drawing


def test_a_plot_can_be_a_bitmap() -> None:
    assert load_plot(run(Server(lambda request, number: stream())), ".PNG").startswith(b"\x89PNG")
