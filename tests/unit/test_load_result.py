"""What comes of a load test: errors, metrics and goodput out of its samples."""

from __future__ import annotations

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.measure.load_client import Sample
from genopt.measure.load_result import goodput, summarize
from genopt.testing.virtual_server import (
    DONE,
    Part,
    Server,
    run,
    sample,
    stream,
    text,
)


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
