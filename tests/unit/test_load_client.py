"""One request of a load test: what is timed, counted and named, on a loop whose time is virtual, so that nothing sleeps."""

from __future__ import annotations

import itertools

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.measure.prompts import Message
from genopt.testing.virtual_server import (
    DONE,
    Part,
    Parts,
    Server,
    ask,
    event,
    run,
    stream,
    text,
    usage,
    whole,
)


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
