"""Times two language-model sessions against each other, interleaved so that drift of the machine hits both alike.

Rounds that something else on the node disturbed are kept in the raw rows, marked, and measured again.

Definitions: TTFT is request to first token, E2EL request to last token, TPOT = (E2EL - TTFT)/(n - 1) for n
tokens, ITL the gaps between tokens, decode speed 1/TPOT, throughput generated tokens over wall time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median_low

from pydantic import Field

from genopt.engines.base import Generates, Generation, GenerationRequest
from genopt.errors import StageError
from genopt.measure.duel import ROLES, Clock, Comparison, order, repeated_batches, rounds_until_known, settle
from genopt.measure.exclusivity import Unwatched, Watch
from genopt.measure.gpu import described
from genopt.measure.repeats import Repeats, Row
from genopt.measure.statistics import log_ratio_interval, metric
from genopt.plan import JsonValue, Metric, Ratio, Record

MIN_ROUNDS = 5
"""Fewer may agree by chance and look decided; they are measured even where the time cap has passed."""
AA_ROUNDS = 8
CLOCK_RESOLUTION_MS = 1e-6
"""Timestamps are whole nanoseconds; two tokens with the same one are not infinitely fast."""


class TextWorkload(Record):
    """What is generated.

    Attributes:
        prompts: Token ids; used in turn, the same one for both sessions within a round.
        output_tokens: New tokens per request.
        concurrency: Numbers of simultaneous streams at which throughput is measured.
    """

    prompts: tuple[tuple[int, ...], ...] = Field(min_length=1)
    output_tokens: int = Field(ge=2)
    concurrency: tuple[int, ...] = (1,)

    def lengths(self) -> dict[str, JsonValue]:
        """Tokens in and out as a metric's conditions say them; prompts of different lengths by their median and their longest."""
        counts = [len(prompt) for prompt in self.prompts]
        longest: dict[str, JsonValue] = {"longest_prompt_tokens": max(counts)} if min(counts) < max(counts) else {}
        return {"prompt_tokens": median_low(counts), **longest, "output_tokens": self.output_tokens}


@dataclass(frozen=True)
class Timing:
    """One request's times; `of` counts them from when the engine got the request, or from when it arrived before that."""

    tokens: int
    ttft_ms: float
    tpot_ms: float
    e2el_ms: float
    itl_ms: tuple[float, ...]

    @classmethod
    def of(cls, generation: Generation, waited_ms: float = 0.0) -> Timing:
        """Raises `StageError` where there is no time per token."""
        times = generation.timestamps_ns
        if len(times) < 2:
            raise StageError(f"The engine returned {len(times)} tokens where a time per token needs two; check that it ignores end-of-sequence.")
        if any(after < before for before, after in pairwise((generation.started_ns, *times))):
            raise StageError("The clock of the engine's timestamps went backwards; measure on a machine with a monotonic clock.")
        ttft, e2el = (waited_ms + (at - generation.started_ns) / 1e6 for at in (times[0], times[-1]))
        gaps = tuple((after - before) / 1e6 for before, after in pairwise(times))
        per_token = max(CLOCK_RESOLUTION_MS, (e2el - ttft) / (len(times) - 1))
        return cls(tokens=len(times), ttft_ms=ttft, tpot_ms=per_token, e2el_ms=max(CLOCK_RESOLUTION_MS, e2el), itl_ms=gaps)


class _Duel:
    """Two sessions under one workload, and all rows so far."""

    def __init__(self, candidate: Generates, baseline: Generates, workload: TextWorkload, repeats: Repeats) -> None:
        self._sessions = {"candidate": candidate, "baseline": baseline}
        self._workload = workload
        self.repeats = repeats
        self.timings: dict[str, list[Timing]] = {role: [] for role in self._sessions}
        self.batches: dict[tuple[str, int], list[float]] = {}
        self._warm: dict[int, bool] = {}
        self.decided = False

    def warm_up(self) -> None:
        """One request per session, kept apart; it takes the last prompt, so that no early round finds its prompt in a cache."""
        for turn, role in enumerate(self._sessions):
            self._run(role, phase="warmup", round_index=-1, turn=turn, streams=1)

    def alone(self, *, seed: int, half_width: float, max_rounds: int, deadline: float, clock: Clock) -> Ratio:
        """Rounds of one request per session until the ratio is known well enough; returns it."""

        def take(found: dict[str, list[Timing]]) -> None:
            for role, timings in found.items():
                self.timings[role] += timings

        ratio, self.decided = rounds_until_known(
            self.repeats, self._round, take, partial(self._ratio, seed), half_width=half_width, least=MIN_ROUNDS, most=max_rounds,
            deadline=deadline, clock=clock,
        )  # fmt: skip
        return ratio

    def _round(self, index: int) -> dict[str, list[Timing]]:
        return {
            role: self._run(role, phase="single", round_index=index, turn=turn, streams=1) for turn, role in enumerate(order(index))
        }  # fmt: skip

    def batch(self, count: int, roles: tuple[str, ...], *, least: int, deadline: float, clock: Clock) -> None:
        """Batches of `count` requests on sessions, the first to warm up; repeated in the other order while the time suffices."""

        def take(found: dict[str, list[Timing]]) -> None:
            for role, timings in found.items():
                seconds = max(timing.e2el_ms for timing in timings) / 1e3
                self.batches.setdefault((role, count), []).append(sum(timing.tokens for timing in timings) / seconds)

        measure = partial(self._batch, streams=count, roles=roles)
        self._warm[count] = repeated_batches(self.repeats, measure, take, least=least, deadline=deadline, clock=clock)

    def _batch(self, index: int, streams: int, roles: tuple[str, ...]) -> dict[str, list[Timing]]:
        return {
            role: self._run(role, phase="throughput", round_index=index, turn=turn, streams=streams)
            for turn, role in enumerate(order(index, roles))
        }  # fmt: skip

    def metrics(self, role: str, *, seed: int) -> dict[str, Metric]:
        """The metrics of one session."""
        timings = self.timings[role]

        def summary(samples: Sequence[float], unit: str, streams: int = 1) -> Metric:
            conditions: dict[str, JsonValue] = {
                **self._workload.lengths(), "concurrency": streams, "decided": self.decided, "contended": self.repeats.kept_disturbed,
                **({"gpu": told} if (told := described(self.repeats.gpus)) else {}),
                **({"warm": self._warm[streams]} if streams > 1 else {}),
            }  # fmt: skip
            return metric(samples, unit, seed=seed, conditions=conditions)

        found = {
            "ttft_ms": summary([timing.ttft_ms for timing in timings], "ms"),
            "tpot_ms": summary([timing.tpot_ms for timing in timings], "ms"),
            "decode_tok_s": summary([1e3 / timing.tpot_ms for timing in timings], "tok/s"),
        }
        for streams in self._workload.concurrency:
            rates = [1e3 * timing.tokens / timing.e2el_ms for timing in timings] if streams == 1 else self.batches.get((role, streams))
            if rates is not None:
                found[f"throughput_tok_s@{streams}"] = summary(rates, "tok/s", streams)
        return found

    def _ratio(self, seed: int) -> Ratio:
        candidate, baseline = ([timing.tpot_ms for timing in self.timings[role]] for role in ("candidate", "baseline"))
        return log_ratio_interval(candidate, baseline, seed=seed)

    def _run(self, role: str, *, phase: str, round_index: int, turn: int, streams: int) -> list[Timing]:
        """One call with `streams` requests, recorded."""
        prompts = self._workload.prompts
        chosen = [prompts[(round_index + offset) % len(prompts)] for offset in range(streams)]
        requests = [GenerationRequest(prompt_ids=prompt, max_new_tokens=self._workload.output_tokens) for prompt in chosen]
        timings = [Timing.of(generation) for generation in self._sessions[role].generate(requests)]
        if len(timings) != streams:
            raise StageError(f"The engine answered {len(timings)} of {streams} requests; check that it returns one result per request.")
        for prompt, timing in zip(chosen, timings, strict=True):
            self.repeats.rows.append(row(timing, session=role, phase=phase, round_index=round_index, turn=turn, streams=streams, prompt=len(prompt)))
        return timings


def row(timing: Timing, *, session: str, phase: str, round_index: int, turn: int, streams: int, prompt: int) -> Row:
    """One request as the records keep it."""
    return {
        "session": session, "round": round_index, "turn": turn, "phase": phase, "concurrency": streams, "prompt_tokens": prompt,
        "output_tokens": timing.tokens, "ttft_ms": timing.ttft_ms, "tpot_ms": timing.tpot_ms, "e2el_ms": timing.e2el_ms,
        "itl_ms": list(timing.itl_ms), "disturbance": "", "gpus": [],
    }  # fmt: skip


def compare(
    candidate: Generates,
    baseline: Generates,
    workload: TextWorkload,
    *,
    seed: int,
    half_width: float,
    max_rounds: int,
    time_cap_s: float,
    batched: tuple[str, ...] = ROLES,
    batches_decide: bool = False,
    watch: Watch | None = None,
    clock: Clock = time.monotonic,
) -> Comparison:
    """Measures two sessions interleaved: warm-up, single streams until the ratio is known, then batches.

    Five rounds of single streams and one batch per concurrency, three of the largest where batches decide, are always measured; the time cap
    governs all beyond. The first batch of each size warms up: it counts only where there was no time for another one. Requests are greedy and
    have no stop tokens, so that both sessions generate equally many tokens.

    Args:
        candidate: What is judged.
        baseline: What it is compared with.
        workload: What is generated.
        seed: Seed of the intervals' resampling.
        half_width: Enough rounds are done when the ratio's relative half-width is at most this.
        max_rounds: Upper bound of rounds.
        time_cap_s: Seconds after which nothing optional is started.
        batched: Sides whose batches are timed: those of a baseline that was compared with the original are known.
        batches_decide: Whether the largest batches decide who wins; see `genopt.measure.duel.settle`.
        watch: Notices what else happens on the node.
        clock: Monotonic clock in seconds.

    Raises:
        StageError: A session returned too few tokens or results.
        GenoptError: Whatever a session raises.
    """
    repeats = Repeats(watch or Unwatched(), clock, time_cap_s)
    return settle(
        _Duel(candidate, baseline, workload, repeats), workload.concurrency, batched=batched, batches_decide=batches_decide, seed=seed,
        half_width=half_width, max_rounds=max_rounds, time_cap_s=time_cap_s, clock=clock,
    )  # fmt: skip


def measure_aa(
    session: Generates, workload: TextWorkload, *, seed: int, half_width: float, time_cap_s: float, watch: Watch | None = None,
    clock: Clock = time.monotonic,
) -> Ratio:  # fmt: skip
    """Compares a session with itself: how far from 1 pure noise gets. An interval that misses 1 tells of a disturbed machine.

    Args:
        session: What is timed in both roles.
        workload: What is generated; single streams only.
        seed: Seed of the interval's resampling.
        half_width: Enough rounds are done when the ratio's relative half-width is at most this.
        time_cap_s: Seconds after which no further round is started.
        watch: Notices what else happens on the node.
        clock: Monotonic clock in seconds.

    Raises:
        StageError: The session returned too few tokens or results.
    """
    deadline = clock() + time_cap_s
    duel = _Duel(session, session, workload, Repeats(watch or Unwatched(), clock, time_cap_s))
    duel.warm_up()
    return duel.alone(seed=seed, half_width=half_width, max_rounds=AA_ROUNDS, deadline=deadline, clock=clock)
