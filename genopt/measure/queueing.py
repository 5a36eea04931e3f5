"""What callers wait where requests arrive by themselves: the batches of a deployed replica, on a session's own times.

A session takes one batch at a time here, so requests that arrive meanwhile queue, and start together when it is done, as in
`genopt.serving.batching.Batcher`; callers of an engine whose running batch can be joined wait less. Every batch is really
generated; only the time in which nothing has arrived is skipped: the clock on which requests arrive and wait jumps to the next
arrival. That gives the times of an idle machine with the queue of a busy one, in less time than the arrivals span.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from genopt.engines.base import Generates, Generation, GenerationRequest
from genopt.errors import StageError
from genopt.measure.arrivals import arrivals
from genopt.measure.exclusivity import Unwatched, Watch
from genopt.measure.repeats import Repeats, Row
from genopt.measure.statistics import percentiles
from genopt.measure.text_speed import TextWorkload, Timing, row
from genopt.plan import JsonValue, Metric, Record
from genopt.spec import ArrivalKind

REQUESTS = 64
BATCH_WAIT_S = 0.005
"""How long the first request of a batch waits for company; as `batch_wait_ms` of a deployment is unless changed."""


class Load(Record):
    """How requests arrive, and how they are put together.

    Attributes:
        kind: `poisson` or `fixed`.
        rate: Mean arrivals per second.
        max_batch: Most requests of a batch.
    """

    kind: ArrivalKind
    rate: float
    max_batch: int


@dataclass(frozen=True)
class Queued:
    """What was found.

    Attributes:
        metrics: `ttft_ms`, `tpot_ms`, `e2el_ms` and `output_tok_s`, each with `@` and the kind of arrivals; times from arrival. Without
            intervals: requests that queue behind each other are not independent. The condition `busy` is the session's share
            of the time; near 1 requests come faster than they are answered, and waiting times grow with the length of the test.
        raw: One row per request, like those of `genopt.measure.text_speed`; `round` is the batch, `concurrency` its size.
    """

    metrics: dict[str, Metric]
    raw: tuple[Row, ...]


def measure_queue(
    session: Generates, workload: TextWorkload, load: Load, *, name: str, seed: int, time_cap_s: float, watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Queued:  # fmt: skip
    """Answers requests as they arrive, until `REQUESTS` are answered or the time is up; one batch is always measured.

    Args:
        session: What answers.
        workload: What is asked; its prompts in turn.
        load: How requests arrive.
        name: What the rows call the session.
        seed: Same seed, same arrivals.
        time_cap_s: Seconds after which no further batch is started.
        watch: Notices what else happens on the node; disturbed batches are measured again.
        clock: Monotonic clock in seconds.

    Raises:
        StageError: The session returned too few tokens or results.
    """
    deadline = clock() + time_cap_s
    repeats = Repeats(watch or Unwatched(), clock, time_cap_s)
    arriving = list(itertools.islice(arrivals(load.kind, load.rate, seed=seed), REQUESTS))
    timings: list[Timing] = []
    sizes: list[int] = []
    free_at = busy_s = 0.0
    while len(timings) < len(arriving) and (not timings or clock() < deadline):
        begins, count = _next_batch(arriving, len(timings), free_at, load.max_batch)
        waited_ms = [1e3 * (begins - at) for at in arriving[len(timings) : len(timings) + count]]
        found = repeats.measured(partial(_batch, session, workload, name, repeats.rows, len(sizes), len(timings), waited_ms, clock))
        if found is not None:
            batch, seconds = found
            timings += batch
            sizes.append(count)
            busy_s += seconds
            free_at = begins + seconds
    conditions: dict[str, JsonValue] = {
        **workload.lengths(), "rate": load.rate, "max_batch": load.max_batch, "mean_batch": round(len(timings) / len(sizes), 2),
        "busy": round(busy_s / (free_at - arriving[0]), 3), "contended": repeats.kept_disturbed,
    }  # fmt: skip
    return Queued(metrics=_metrics(timings, free_at - arriving[0], load.kind, conditions), raw=tuple(repeats.rows))


def _next_batch(arriving: Sequence[float], first: int, free_at: float, max_batch: int) -> tuple[float, int]:
    """When the next batch begins and how many requests it has, as `genopt.serving.batching.Batcher` puts it together."""
    taken_at = max(free_at, arriving[first])
    closes_at = taken_at + BATCH_WAIT_S
    count = sum(1 for at in arriving[first : first + max_batch] if at <= closes_at)
    return (max(taken_at, arriving[first + count - 1]) if count == max_batch else closes_at), count


def _batch(
    session: Generates, workload: TextWorkload, name: str, rows: list[Row], number: int, first: int, waited_ms: Sequence[float],
    clock: Callable[[], float],
) -> tuple[list[Timing], float]:  # fmt: skip
    """Generates one batch and adds its rows; returns its times, and for how long the session was busy."""
    prompts = [workload.prompts[(first + place) % len(workload.prompts)] for place in range(len(waited_ms))]
    started = clock()
    generations: list[Generation] = session.generate(
        [GenerationRequest(prompt_ids=prompt, max_new_tokens=workload.output_tokens) for prompt in prompts]
    )  # fmt: skip
    seconds = clock() - started
    if len(generations) != len(prompts):
        raise StageError(f"The engine answered {len(generations)} of {len(prompts)} requests; check that it returns one result per request.")
    timings = [Timing.of(generation, waited) for generation, waited in zip(generations, waited_ms, strict=True)]
    for turn, (timing, prompt) in enumerate(zip(timings, prompts, strict=True)):
        rows.append(row(timing, session=name, phase="arrivals", round_index=number, turn=turn, streams=len(prompts), prompt=len(prompt)))
    return timings, seconds


def _metrics(timings: Sequence[Timing], span_s: float, kind: ArrivalKind, conditions: dict[str, JsonValue]) -> dict[str, Metric]:
    columns = {"ttft_ms": [one.ttft_ms for one in timings], "tpot_ms": [one.tpot_ms for one in timings], "e2el_ms": [one.e2el_ms for one in timings]}
    found = {}
    for name, values in columns.items():
        p50, p90, p99 = percentiles(values)
        found[f"{name}@{kind}"] = Metric(value=p50, unit="ms", p50=p50, p90=p90, p99=p99, n=len(values), conditions=conditions)
    rate = sum(one.tokens for one in timings) / span_s
    found[f"output_tok_s@{kind}"] = Metric(value=rate, unit="tok/s", n=len(timings), conditions=conditions)
    return found
