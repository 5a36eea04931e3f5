"""Times two sessions that make images against each other, interleaved so that drift of the machine hits both alike.

Definitions: latency is request to finished file; a step is the time between the first and the last denoising step over the
steps between them; images per second are those of a batch over its wall time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import Field

from genopt.engines.images import GeneratedImage, ImageRequest, MakesImages
from genopt.errors import StageError
from genopt.measure.duel import ROLES, Clock, Comparison, order, repeated_batches, rounds_until_known, settle
from genopt.measure.exclusivity import Unwatched, Watch
from genopt.measure.gpu import described
from genopt.measure.repeats import Repeats
from genopt.measure.statistics import log_ratio_interval, metric
from genopt.plan import JsonValue, Metric, Ratio, Record

MIN_ROUNDS, AA_ROUNDS = 4, 8
"""An image takes as long as many tokens, and its latency varies less."""


class ImageWorkload(Record):
    """What is made.

    Attributes:
        prompts: Used in turn, the same one for both sessions within a round.
        concurrency: Sizes of the batches at which images per second are measured.
    """

    prompts: tuple[str, ...] = Field(min_length=1)
    concurrency: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Timing:
    """One image's times."""

    steps: int
    latency_ms: float
    step_ms: float

    @classmethod
    def of(cls, image: GeneratedImage) -> Timing:
        """Raises `StageError` where no image was made."""
        times = image.timestamps_ns
        if image.finish_reason != "done" or not times:
            raise StageError("The engine made no image where one was timed; see the session's log for the cause.")
        between = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[0] - image.started_ns
        return cls(steps=len(times), latency_ms=(image.finished_ns - image.started_ns) / 1e6, step_ms=between / 1e6)


class _Duel:
    """Two sessions under one workload, and all rows so far."""

    def __init__(self, candidate: MakesImages, baseline: MakesImages, workload: ImageWorkload, repeats: Repeats) -> None:
        self._sessions = dict(zip(ROLES, (candidate, baseline), strict=True))
        self._workload = workload
        self.repeats = repeats
        self.timings: dict[str, list[Timing]] = {role: [] for role in ROLES}
        self.rates: dict[tuple[str, int], list[float]] = {}
        self._warm: dict[int, bool] = {}
        self.decided = False

    def warm_up(self) -> None:
        """One image per session, kept apart."""
        for turn, role in enumerate(ROLES):
            self._run(role, phase="warmup", round_index=-1, turn=turn, count=1)

    def alone(self, *, seed: int, half_width: float, max_rounds: int, deadline: float, clock: Clock) -> Ratio:
        """Rounds of one image per session until the ratio is known well enough; returns it."""

        def take(found: dict[str, list[Timing]]) -> None:
            for role, timings in found.items():
                self.timings[role] += timings

        ratio, self.decided = rounds_until_known(
            self.repeats, partial(self._round, phase="single", count=1), take, partial(self._ratio, seed), half_width=half_width,
            least=MIN_ROUNDS, most=max_rounds, deadline=deadline, clock=clock,
        )  # fmt: skip
        return ratio

    def batch(self, count: int, roles: tuple[str, ...], *, least: int, deadline: float, clock: Clock) -> None:
        """Batches of `count` images on sessions, the first to warm up."""

        def take(found: dict[str, list[Timing]]) -> None:
            for role, timings in found.items():
                self.rates.setdefault((role, count), []).append(1e3 * count / max(timing.latency_ms for timing in timings))

        measure = partial(self._round, phase="throughput", count=count, roles=roles)
        self._warm[count] = repeated_batches(self.repeats, measure, take, least=least, deadline=deadline, clock=clock)

    def metrics(self, role: str, *, seed: int) -> dict[str, Metric]:
        """The metrics of one session."""
        timings = self.timings[role]
        conditions: dict[str, JsonValue] = {
            "steps": timings[0].steps, "decided": self.decided, "contended": self.repeats.kept_disturbed,
            **({"gpu": told} if (told := described(self.repeats.gpus)) else {}),
        }  # fmt: skip

        def summary(samples: Sequence[float], unit: str, batch: int = 1) -> Metric:
            warm: dict[str, JsonValue] = {"warm": self._warm[batch]} if batch > 1 else {}
            return metric(samples, unit, seed=seed, conditions={**conditions, "concurrency": batch, **warm})

        found = {
            "latency_ms": summary([timing.latency_ms for timing in timings], "ms"),
            "step_ms": summary([timing.step_ms for timing in timings], "ms"),
        }
        for count in self._workload.concurrency:
            rates = [1e3 / timing.latency_ms for timing in timings] if count == 1 else self.rates.get((role, count))
            if rates is not None:
                found[f"images_per_s@{count}"] = summary(rates, "images/s", count)
        return found

    def _ratio(self, seed: int) -> Ratio:
        candidate, baseline = ([timing.latency_ms for timing in self.timings[role]] for role in ROLES)
        return log_ratio_interval(candidate, baseline, seed=seed)

    def _round(self, index: int, *, phase: str, count: int, roles: tuple[str, ...] = ROLES) -> dict[str, list[Timing]]:
        return {role: self._run(role, phase=phase, round_index=index, turn=turn, count=count) for turn, role in enumerate(order(index, roles))}

    def _run(self, role: str, *, phase: str, round_index: int, turn: int, count: int) -> list[Timing]:
        """One call for `count` images, recorded."""
        prompts = self._workload.prompts
        requests = [ImageRequest(prompt=prompts[(round_index + place) % len(prompts)], seed=1 + round_index + place) for place in range(count)]
        timings = [Timing.of(image) for image in self._sessions[role].generate(requests)]
        if len(timings) != count:
            raise StageError(f"The engine made {len(timings)} of {count} images; check that it returns one result per request.")
        for timing in timings:
            self.repeats.rows.append({
                "session": role, "round": round_index, "turn": turn, "phase": phase, "concurrency": count, "steps": timing.steps,
                "latency_ms": timing.latency_ms, "step_ms": timing.step_ms, "disturbance": "", "gpus": [],
            })  # fmt: skip
        return timings


def compare(
    candidate: MakesImages,
    baseline: MakesImages,
    workload: ImageWorkload,
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
    """Measures two sessions interleaved: warm-up, single images until the ratio of latencies is known, then batches.

    Four rounds and one batch per concurrency, three of the largest where batches decide, are always measured; the time cap governs all beyond.
    The first batch of each size warms up: it counts only where there was no time for another one.

    Args:
        candidate: What is judged.
        baseline: What it is compared with.
        workload: What is made.
        seed: Seed of the intervals' resampling.
        half_width: Enough rounds are done when the ratio's relative half-width is at most this.
        max_rounds: Upper bound of rounds.
        time_cap_s: Seconds after which nothing optional is started.
        batched: Sides whose batches are timed: those of a baseline that was compared with the original are known.
        batches_decide: Whether the largest batches decide who wins; see `genopt.measure.duel.settle`.
        watch: Notices what else happens on the node.
        clock: Monotonic clock in seconds.

    Raises:
        StageError: A session made too few images.
        GenoptError: Whatever a session raises.
    """
    repeats = Repeats(watch or Unwatched(), clock, time_cap_s)
    return settle(
        _Duel(candidate, baseline, workload, repeats), workload.concurrency, batched=batched, batches_decide=batches_decide, seed=seed,
        half_width=half_width, max_rounds=max_rounds, time_cap_s=time_cap_s, clock=clock,
    )  # fmt: skip


def measure_aa(
    session: MakesImages, workload: ImageWorkload, *, seed: int, half_width: float, time_cap_s: float, watch: Watch | None = None,
    clock: Clock = time.monotonic,
) -> Ratio:  # fmt: skip
    """Compares a session with itself; see `genopt.measure.text_speed.measure_aa`."""
    deadline = clock() + time_cap_s
    duel = _Duel(session, session, workload, Repeats(watch or Unwatched(), clock, time_cap_s))
    return duel.alone(seed=seed, half_width=half_width, max_rounds=AA_ROUNDS, deadline=deadline, clock=clock)
