"""The loops of a load test, closed and open, and whether the client itself was the bottleneck."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.measure.arrivals import arrivals
from genopt.measure.load_client import LoadClient
from genopt.measure.load_result import LoadResult, result_of
from genopt.measure.load_spec import build
from genopt.measure.load_test import measure
from genopt.measure.load_transport import open_client
from genopt.testing.virtual_server import (
    URL,
    Part,
    Server,
    VirtualLoop,
    play,
    run,
    stream,
)


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
