"""The interleaved measurement, with sessions that follow a script on a clock of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.errors import StageError
from genopt.measure.duel import CANDIDATE
from genopt.measure.exclusivity import Disturbance
from genopt.measure.text_speed import TextWorkload, compare, measure_aa

WORKLOAD = TextWorkload(prompts=((1, 2, 3), (4, 5, 6)), output_tokens=5, concurrency=(1, 4))
KEYS = {
    "session", "round", "turn", "phase", "concurrency", "prompt_tokens", "output_tokens", "ttft_ms", "tpot_ms", "e2el_ms", "itl_ms",
    "disturbance", "gpus",
}  # fmt: skip


class World:
    """A clock, and the order in which sessions were called."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000
        self.calls: list[tuple[str, tuple[GenerationRequest, ...]]] = []

    def clock(self) -> float:
        return self.now_ns / 1e9


class ScriptedSession:
    """Takes `first_ms` to the first token and `step_ms(call)` for each further one; a batch costs as much as one request."""

    def __init__(self, world: World, name: str, *, first_ms: float, step_ms: Callable[[int], float], tokens: int | None = None) -> None:
        self._world, self._name, self._first_ms, self._step_ms, self._tokens = world, name, first_ms, step_ms, tokens
        self._calls = 0

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        self._world.calls.append((self._name, tuple(requests)))
        started, step = self._world.now_ns, int(self._step_ms(self._calls) * 1e6)
        self._calls += 1
        count = requests[0].max_new_tokens if self._tokens is None else self._tokens
        times = tuple(started + int(self._first_ms * 1e6) + step * index for index in range(count))
        self._world.now_ns = times[-1] if times else started
        return [Generation(token_ids=(7,) * count, timestamps_ns=times, started_ns=started, finish_reason="length") for _ in requests]

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        raise AssertionError("speed needs no scores")

    def memory(self) -> Memory:
        return Memory(rss_bytes=0, peak_rss_bytes=0)

    def close(self) -> None:
        pass


def session(world: World, name: str, step_ms: float, **options: int) -> ScriptedSession:
    """Slower at its first call, as engines are."""
    return ScriptedSession(world, name, first_ms=30.0, step_ms=lambda call: step_ms if call else 50 * step_ms, **options)


def jittery(world: World, name: str, step_ms: float) -> ScriptedSession:
    """Its time per token changes so much from call to call that no round count decides."""
    return ScriptedSession(world, name, first_ms=30.0, step_ms=lambda call: step_ms * (1 + call * 7 % 5))


def test_steady_sessions_are_decided_after_five_rounds() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    assert (found.ratio.value, found.ratio.ci_low, found.ratio.ci_high) == pytest.approx((2.0, 2.0, 2.0))
    assert "".join(name for name, _ in world.calls) == "AB" + "ABBAABBAAB" + "ABBAABBA"
    assert found.candidate_metrics["tpot_ms"].conditions == {
        "prompt_tokens": 3, "output_tokens": 5, "concurrency": 1, "decided": True, "contended": False
    }  # fmt: skip


def test_metrics_follow_their_definitions_and_leave_the_warm_up_out() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    metrics = found.candidate_metrics
    assert set(metrics) == set(found.baseline_metrics) == {"ttft_ms", "tpot_ms", "decode_tok_s", "throughput_tok_s@1", "throughput_tok_s@4"}
    assert metrics["ttft_ms"].value == pytest.approx(30.0)
    assert metrics["tpot_ms"].p99 == pytest.approx(10.0)
    assert metrics["decode_tok_s"].value == pytest.approx(100.0)
    assert metrics["throughput_tok_s@1"].value == pytest.approx(5 / 0.070)
    assert metrics["throughput_tok_s@4"].value == pytest.approx(4 * 5 / 0.070)
    assert (metrics["tpot_ms"].n, metrics["throughput_tok_s@4"].n) == (5, 3)
    assert metrics["throughput_tok_s@4"].conditions["concurrency"] == 4
    warm = [row for row in found.raw if row["phase"] == "warmup"]
    assert [row["session"] for row in warm] == ["candidate", "baseline"]
    assert warm[0]["tpot_ms"] == pytest.approx(500.0)


def test_a_baseline_whose_batches_are_known_is_timed_alone_only() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1000.0, batched=CANDIDATE, clock=world.clock,
    )  # fmt: skip
    assert "".join(name for name, _ in world.calls) == "AB" + "ABBAABBAAB" + "AAAA"
    assert set(found.candidate_metrics) - set(found.baseline_metrics) == {"throughput_tok_s@4"}
    assert found.candidate_metrics["throughput_tok_s@4"].n == 3


class SlowFirstBatch(ScriptedSession):
    """Its first batch takes ten times as long as those after it."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, first_ms=30.0, step_ms=lambda _: 100.0 if self._cold else 10.0)
        self._batches = 0
        self._cold = False

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        self._batches += len(requests) > 1
        self._cold = len(requests) > 1 and self._batches == 1
        return super().generate(requests, on_token)


@pytest.mark.parametrize(("seconds", "warm"), [(1000.0, True), (0.0, False)])
def test_the_first_batch_of_a_size_counts_only_where_there_is_no_other(seconds: float, warm: bool) -> None:
    world = World()
    found = compare(
        SlowFirstBatch(world, "A"), SlowFirstBatch(world, "B"), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=seconds, batched=CANDIDATE, clock=world.clock,
    )  # fmt: skip
    metric = found.candidate_metrics["throughput_tok_s@4"]
    assert metric.value == pytest.approx(4 * 5 / (0.070 if warm else 0.430))
    assert metric.conditions["warm"] == warm
    assert [row["phase"] for row in found.raw if row["concurrency"] == 4][:4] == ["throughput, warm-up" if warm else "throughput"] * 4


def test_what_others_are_compared_with_is_warm_however_short_the_time() -> None:
    world = World()
    found = compare(
        SlowFirstBatch(world, "A"), SlowFirstBatch(world, "B"), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=0.0, clock=world.clock,
    )  # fmt: skip
    assert found.baseline_metrics["throughput_tok_s@4"].value == pytest.approx(4 * 5 / 0.070)


@pytest.mark.parametrize(("decide", "count"), [(False, 1), (True, 3)])
def test_batches_that_decide_have_an_interval_however_short_the_time(decide: bool, count: int) -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=0.0, batches_decide=decide, clock=world.clock,
    )  # fmt: skip
    metric = found.candidate_metrics["throughput_tok_s@4"]
    assert (metric.n, metric.ci_low is not None) == (count, decide)


def test_single_streams_take_half_of_the_time_where_batches_decide() -> None:
    spent = []
    for decide in (False, True):
        world = World()
        compare(
            session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
            seed=0, half_width=-1.0, max_rounds=1000, time_cap_s=20.0, batches_decide=decide, clock=world.clock,
        )  # fmt: skip
        spent.append(sum(len(requests) == 1 for _, requests in world.calls))
    assert spent[0] > 100
    assert spent[1] == pytest.approx(spent[0] / 2, abs=4)


def test_rows_are_flat_and_alike() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    assert all(set(row) == KEYS for row in found.raw)
    assert len(found.raw) == 2 + 2 * 5 + 4 * 2 * 4
    assert found.raw[2]["itl_ms"] == pytest.approx([10.0] * 4)
    assert {row["output_tokens"] for row in found.raw} == {5}


def test_both_sessions_get_the_same_prompt_within_a_round_and_the_prompts_rotate() -> None:
    world = World()
    compare(
        jittery(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.001, max_rounds=6, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    single = [requests[0] for _, requests in world.calls[2:14]]
    prompts = [request.prompt_ids for request in single]
    assert prompts[0::2] == prompts[1::2]
    assert prompts[0::2] == [(1, 2, 3), (4, 5, 6)] * 3
    assert all(request.temperature == 0 and request.stop_token_ids == () and request.max_new_tokens == 5 for request in single)


def test_undecided_sessions_run_to_the_round_limit_and_say_so() -> None:
    world = World()
    found = compare(
        jittery(world, "A", 10.0), session(world, "B", 10.0), WORKLOAD,
        seed=0, half_width=0.001, max_rounds=6, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    assert found.candidate_metrics["tpot_ms"].n == 6
    assert found.candidate_metrics["tpot_ms"].conditions["decided"] is False


def test_the_time_cap_leaves_five_rounds_and_one_batch() -> None:
    world = World()
    found = compare(
        jittery(world, "A", 10.0), session(world, "B", 10.0), WORKLOAD,
        seed=0, half_width=0.001, max_rounds=6, time_cap_s=0.0, clock=world.clock,
    )  # fmt: skip
    assert found.candidate_metrics["tpot_ms"].n == found.baseline_metrics["tpot_ms"].n == 5
    assert found.candidate_metrics["throughput_tok_s@4"].n == found.baseline_metrics["throughput_tok_s@4"].n == 1


def test_a_session_is_as_fast_as_itself() -> None:
    world = World()
    one = ScriptedSession(world, "A", first_ms=30.0, step_ms=lambda call: 10.0 + call * 7 % 5 / 10)
    found = measure_aa(one, WORKLOAD, seed=0, half_width=0.02, time_cap_s=1000.0, clock=world.clock)
    assert found.ci_low <= 1.0 <= found.ci_high
    assert found.value == pytest.approx(1.0, abs=0.05)
    assert all(len(requests) == 1 for _, requests in world.calls)


def test_tokens_that_arrive_at_once_are_not_infinitely_fast() -> None:
    world = World()
    found = compare(
        ScriptedSession(world, "A", first_ms=0.0, step_ms=lambda _call: 0.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=2, time_cap_s=1000.0, clock=world.clock,
    )  # fmt: skip
    assert found.candidate_metrics["tpot_ms"].value > 0


@pytest.mark.parametrize("tokens", [0, 1])
def test_too_few_tokens_are_an_error(tokens: int) -> None:
    world = World()
    with pytest.raises(StageError, match=f"returned {tokens} tokens"):
        compare(
            session(world, "A", 10.0, tokens=tokens), session(world, "B", 20.0), WORKLOAD,
            seed=0, half_width=0.02, max_rounds=2, time_cap_s=1.0, clock=world.clock,
        )  # fmt: skip


@pytest.mark.parametrize("step_ms", [-1.0, -40.0])
def test_a_clock_that_goes_backwards_is_an_error_and_not_infinite_speed(step_ms: float) -> None:
    world = World()
    with pytest.raises(StageError, match="went backwards"):
        compare(
            session(world, "A", step_ms), session(world, "B", 20.0), WORKLOAD,
            seed=0, half_width=0.02, max_rounds=2, time_cap_s=1.0, clock=world.clock,
        )  # fmt: skip


def test_a_workload_needs_a_prompt() -> None:
    with pytest.raises(ValidationError):
        TextWorkload(prompts=(), output_tokens=4)


class Scripted:
    """A watch that sees what the script says, measurement by measurement, and silence after its end."""

    def __init__(self, *contended: bool, always: bool = False) -> None:
        self._script, self._always = list(contended), always
        self.watching = False

    def begin(self) -> None:
        assert not self.watching
        self.watching = True

    def end(self) -> Disturbance:
        self.watching = False
        disturbed = self._always or (self._script.pop(0) if self._script else False)
        return Disturbance(seconds=1.0, other_cores=1.0 if disturbed else 0.0, steal=0.0)


def test_disturbed_rounds_are_kept_apart_and_measured_again() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1000.0, watch=Scripted(True, False, True, False, False, False, False, True),
        clock=world.clock,
    )  # fmt: skip
    assert (found.discarded, found.contended, found.decided) == (3, False, True)
    assert found.candidate_metrics["tpot_ms"].n == 5
    assert found.candidate_metrics["throughput_tok_s@4"].n == 3
    disturbed = [row for row in found.raw if "disturbed" in str(row["phase"])]
    assert len(disturbed) == 2 * 2 + 2 * 4
    assert {row["disturbance"] for row in disturbed} == {"1.00 processors used by others, 0.0% stolen"}


def test_a_node_that_is_never_quiet_is_measured_all_the_same_and_said_to_be_disturbed() -> None:
    world = World()
    found = compare(
        session(world, "A", 10.0), session(world, "B", 20.0), WORKLOAD,
        seed=0, half_width=0.02, max_rounds=8, time_cap_s=1.0, watch=Scripted(always=True), clock=world.clock,
    )  # fmt: skip
    assert found.contended
    assert found.discarded == 6
    assert found.candidate_metrics["tpot_ms"].conditions["contended"] is True
    counted = [row for row in found.raw if row["phase"] == "single" and row["session"] == "candidate"]
    assert len(counted) == found.candidate_metrics["tpot_ms"].n
    assert all(row["disturbance"] for row in counted)
    assert found.ratio.value == pytest.approx(2.0)


def noisy(world: World, name: str, step_ms: float, generator: np.random.Generator) -> ScriptedSession:
    """Its time per token varies by 1 % from request to request, as on a quiet machine."""
    return ScriptedSession(world, name, first_ms=30.0, step_ms=lambda _call: step_ms * math.exp(generator.normal(0, 0.01)))


@pytest.mark.parametrize(("slowdown", "found_least", "covered_least"), [(0.0, 0, 19), (0.03, 19, 0)])
def test_on_a_quiet_machine_a_slowdown_of_3_percent_is_found_and_none_is_made_up(slowdown: float, found_least: int, covered_least: int) -> None:
    ratios = []
    for seed in range(20):
        world, generator = World(), np.random.default_rng(seed)
        found = compare(
            noisy(world, "A", 10 * (1 + slowdown), generator), noisy(world, "B", 10, generator), WORKLOAD.model_copy(update={"concurrency": (1,)}),
            seed=seed, half_width=0.02, max_rounds=24, time_cap_s=1000.0, clock=world.clock,
        )  # fmt: skip
        ratios.append(found.ratio)
    assert sum(ratio.ci_high < 1 for ratio in ratios) >= found_least
    assert sum(ratio.ci_low <= 1 <= ratio.ci_high for ratio in ratios) >= covered_least
    assert not any(ratio.ci_low > 1.01 for ratio in ratios)
