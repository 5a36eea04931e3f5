"""Requests that arrive by themselves: the queue that forms, and that it is the deployed replica's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.errors import StageError
from genopt.measure.arrivals import arrivals
from genopt.measure.exclusivity import Disturbance
from genopt.measure.knee import knee
from genopt.measure.queueing import BATCH_WAIT_S, REQUESTS, Load, Queued, measure_queue
from genopt.measure.text_speed import TextWorkload
from genopt.plan import Plan
from genopt.serving.manifest import ServeArguments, autoscaling

WORKLOAD = TextWorkload(prompts=((1, 2, 3), (4, 5, 6, 7, 8)), output_tokens=5)
FIRST_S, STEP_S = 0.1, 0.02
SERVICE_S = FIRST_S + 4 * STEP_S
WAIT_MS = 1e3 * BATCH_WAIT_S


class Session:
    """Takes 0.1 s to the first token and 0.02 s for each further one, however many requests there are; keeps its own time."""

    def __init__(self, *, tokens: int = 5) -> None:
        self.now_ns, self._tokens = 10**9, tokens
        self.batches: list[list[GenerationRequest]] = []

    def clock(self) -> float:
        return self.now_ns / 1e9

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        self.batches.append(list(requests))
        started = self.now_ns
        times = tuple(started + int(1e9 * (FIRST_S + STEP_S * index)) for index in range(self._tokens))
        self.now_ns = times[-1] if times else started
        return [Generation(token_ids=(7,) * len(times), timestamps_ns=times, started_ns=started, finish_reason="length") for _ in requests]

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        raise AssertionError("speed needs no scores")

    def memory(self) -> Memory:
        return Memory(rss_bytes=0, peak_rss_bytes=0)

    def close(self) -> None:
        pass


def queue(session: Session, *, kind: str = "fixed", rate: float, max_batch: int = 4, time_cap_s: float = 1000.0, **more: object) -> Queued:
    load = Load.model_validate({"kind": kind, "rate": rate, "max_batch": max_batch})
    return measure_queue(session, WORKLOAD, load, name="candidate", seed=1, time_cap_s=time_cap_s, clock=session.clock, **more)


def test_requests_that_never_meet_wait_for_nothing_but_company() -> None:
    session = Session()
    found = queue(session, rate=1.0)
    assert [len(batch) for batch in session.batches] == [1] * REQUESTS
    assert found.metrics["ttft_ms@fixed"].p99 == pytest.approx(1e3 * FIRST_S + WAIT_MS)
    assert found.metrics["tpot_ms@fixed"].value == pytest.approx(1e3 * STEP_S)
    assert found.metrics["e2el_ms@fixed"].value == pytest.approx(1e3 * SERVICE_S + WAIT_MS)
    assert found.metrics["output_tok_s@fixed"].value == pytest.approx(5, rel=0.02)
    assert found.metrics["ttft_ms@fixed"].conditions["busy"] == pytest.approx(SERVICE_S, rel=0.02)
    assert session.clock() - 1 == pytest.approx(REQUESTS * SERVICE_S), "the time in which nothing has arrived is skipped"


def test_requests_that_arrive_meanwhile_start_together_when_the_batch_is_done() -> None:
    session = Session()
    found = queue(session, rate=10.0, max_batch=4)
    # One alone; meanwhile, at 0.2 s, one more; it waits until 0.285 s and for company until 0.29 s; then two or so arrive per batch.
    assert [len(batch) for batch in session.batches[:3]] == [1, 1, 2]
    first, second = (row["ttft_ms"] for row in found.raw[:2])
    assert first == pytest.approx(1e3 * FIRST_S + WAIT_MS)
    assert second == pytest.approx(1e3 * (0.1 + BATCH_WAIT_S + SERVICE_S + BATCH_WAIT_S - 0.2 + FIRST_S))
    assert found.metrics["ttft_ms@fixed"].ci_low is None


def test_a_full_batch_starts_at_once_and_nothing_is_ever_above_it() -> None:
    session = Session()
    found = queue(session, rate=1000.0, max_batch=4)
    assert [len(batch) for batch in session.batches] == [4] * (REQUESTS // 4)
    assert found.raw[0]["ttft_ms"] == pytest.approx(1e3 * (FIRST_S + 0.003)), "it starts when its fourth request arrives"
    assert found.metrics["ttft_ms@fixed"].conditions["busy"] == pytest.approx(1, abs=0.01)
    assert found.metrics["ttft_ms@fixed"].p99 > 10 * found.metrics["ttft_ms@fixed"].conditions["mean_batch"] * 1e3 * STEP_S


def test_the_time_cap_leaves_one_batch_and_n_says_so() -> None:
    session = Session()
    found = queue(session, rate=1.0, time_cap_s=0.0)
    assert {metric.n for metric in found.metrics.values()} == {1}
    assert len(found.raw) == 1


@given(rate=st.floats(0.2, 60), max_batch=st.integers(1, 9), kind=st.sampled_from(["poisson", "fixed"]))
@settings(max_examples=30, deadline=None)
def test_every_request_is_answered_once_in_order_and_none_before_it_arrived(rate: float, max_batch: int, kind: str) -> None:
    session = Session()
    found = queue(session, kind=kind, rate=rate, max_batch=max_batch)
    arriving = list(itertools.islice(arrivals(kind, rate, seed=1), REQUESTS))
    assert [len(request.prompt_ids) for batch in session.batches for request in batch] == [3, 5] * (REQUESTS // 2)
    assert max(map(len, session.batches)) <= max_batch
    waits = [row["ttft_ms"] / 1e3 - FIRST_S for row in found.raw]
    assert min(waits) >= -1e-9
    starts = [at + wait for at, wait in zip(arriving, waits, strict=True)]
    batches = [row["round"] for row in found.raw]
    for (one, a), (other, b) in itertools.pairwise(zip(batches, starts, strict=True)):
        assert (b == pytest.approx(a)) if one == other else (other == one + 1 and b >= a + SERVICE_S - 1e-9)
    assert {metric.n for metric in found.metrics.values()} == {REQUESTS}


class Scripted:
    """A watch that sees what the script says, batch by batch."""

    def __init__(self, *disturbed: bool) -> None:
        self._script = list(disturbed)

    def begin(self) -> None:
        pass

    def end(self) -> Disturbance:
        return Disturbance(seconds=1.0, other_cores=1.0 if self._script and self._script.pop(0) else 0.0, steal=0.0)


def test_a_disturbed_batch_is_kept_apart_and_generated_again() -> None:
    quiet, session = queue(Session(), rate=1.0), Session()
    found = queue(session, rate=1.0, watch=Scripted(False, True, False))
    assert len(session.batches) == REQUESTS + 1
    assert found.metrics["ttft_ms@fixed"].value == quiet.metrics["ttft_ms@fixed"].value
    assert [row["phase"] for row in found.raw[:3]] == ["arrivals", "arrivals, disturbed", "arrivals"]
    assert {metric.n for metric in found.metrics.values()} == {REQUESTS}


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_model_that_ends_at_once_is_an_error(tokens: int) -> None:
    with pytest.raises(StageError, match=f"returned {tokens} tokens"):
        queue(Session(tokens=tokens), rate=1.0)


def test_the_batches_are_those_of_a_deployment() -> None:
    arguments = ServeArguments(model_id="m", variant=Plan(name="v", engine="fake"), artifact="a", model_folder="m")
    assert arguments.batch_wait_ms == pytest.approx(1e3 * BATCH_WAIT_S)
    for throughput in ({}, {1: 10.0}, {1: 10.0, 4: 10.5}, {1: 10.0, 4: 30.0, 8: 31.0}, {2: 5.0, 1: 4.0}):
        assert autoscaling(throughput).target_ongoing_requests == knee(throughput)
