"""What a load test found, from one value per request, and how it is written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from genopt.errors import SpecError
from genopt.measure.load_client import ErrorName, Sample, failures
from genopt.measure.load_spec import LimitName, LoadSpec
from genopt.measure.saturation import ClientLoad
from genopt.measure.statistics import metric
from genopt.plan import Metric, Record
from genopt.store.files import storage_error

DEFINITIONS = {
    "ttft_ms": "send to the first chunk with text",
    "tpot_ms": "(E2EL - TTFT)/(n - 1) for n tokens; a request with one token or with all text in one chunk has none",
    "e2el_ms": "send to the last chunk with text",
    "itl_ms": "median gap between a request's chunks with text",
    "itl_max_ms": "longest gap between a request's chunks with text",
    "prompt_tokens": "tokens of a prompt with the chat template, as the server counts them",
    "output_tokens": "new tokens of a request: the server's usage, else its chunks with text",
    "output_tok_s": "new tokens of all successful requests over the level's wall time, first send to last end",
    "requests_s": "successful requests over the same time",
    "goodput": "requests that meet every limit, of all that were sent and per second; a request without TPOT meets its limit",
}
_TIMES = ("ttft_ms", "tpot_ms", "itl_ms", "itl_max_ms", "e2el_ms")
_FEW = 100
"""Under so many requests the 99th percentile leans on the slowest one or two."""


class Goodput(Record):
    """How many requests met every limit.

    Attributes:
        limits_s: The limits in seconds.
        good: Requests that met all.
        share: Of all that were sent, failed ones included.
        requests_s: Per second of the level's wall time; None where no time passed.
    """

    limits_s: dict[LimitName, float]
    good: int
    share: float
    requests_s: float | None


class Level(Record):
    """One level of load.

    Attributes:
        concurrency: Workers of the closed loop, each of which waits for its answer; None in the open loop.
        rate: Mean arrivals per second of the open loop; None in the closed loop.
        sent: Requests, without those of the warm-up.
        succeeded: Those with a whole answer.
        errors: The others, by name.
        examples: What was said about the first error of each name.
        without_usage: Successful requests whose server sent no usage, so that chunks were counted instead of tokens.
        wall_s: First send to last end.
        peak_in_flight: Most requests under way at once.
        warm_up: Requests before the first that counts.
        warm_up_errors: Those of them that failed, by name.
        metrics: By the names of `DEFINITIONS`; one without samples is absent.
        goodput: Where limits were given.
        client: What the test asked of its own process.
        samples: All requests that count, in the order of their end.
    """

    concurrency: int | None
    rate: float | None
    sent: int
    succeeded: int
    errors: dict[ErrorName, int]
    examples: dict[ErrorName, str]
    without_usage: int
    wall_s: float
    peak_in_flight: int
    warm_up: int
    warm_up_errors: dict[ErrorName, int]
    metrics: dict[str, Metric]
    goodput: Goodput | None
    client: ClientLoad
    samples: tuple[Sample, ...]

    @property
    def name(self) -> str:
        """The load in two words."""
        return level_name(self.concurrency, self.rate)


class LoadResult(Record):
    """A whole load test.

    Attributes:
        model: The name that was asked for.
        spec: What was asked for, without any key.
        definitions: What each metric means.
        levels: In the order measured.
        client_saturated: Whether any level's times may be the client's.
        notes: What a reader has to know before believing the numbers.
    """

    schema_version: Literal[1] = 1
    model: str
    spec: LoadSpec
    definitions: dict[str, str]
    levels: tuple[Level, ...]
    client_saturated: bool
    notes: tuple[str, ...]


def level_name(concurrency: int | None, rate: float | None) -> str:
    """A load in a few words: `8 at once`, or `2.5 per s`."""
    return f"{concurrency} at once" if concurrency is not None else f"{rate:g} per s"


def summarize(samples: Sequence[Sample], wall_s: float, *, seed: int) -> dict[str, Metric]:
    """The metrics of a level from its successful requests; without samples a metric is absent.

    Args:
        samples: All requests of the level.
        wall_s: First send to last end.
        seed: Seed of the intervals' resampling.
    """
    good = [sample for sample in samples if sample.error is None]
    columns: dict[str, list[float | int | None]] = {name: [getattr(sample, name) for sample in good] for name in (*_TIMES, "prompt_tokens")}
    columns["output_tokens"] = [sample.tokens for sample in good]
    found: dict[str, Metric] = {}
    for name, values in columns.items():
        present = [float(value) for value in values if value is not None]
        if present:
            found[name] = metric(present, "ms" if name in _TIMES else "tokens", seed=seed)
    if good and wall_s > 0:
        found["output_tok_s"] = Metric(value=sum(sample.tokens for sample in good) / wall_s, unit="tok/s", n=len(good))
        found["requests_s"] = Metric(value=len(good) / wall_s, unit="1/s", n=len(good))
    return found


def goodput(samples: Sequence[Sample], limits_s: Mapping[LimitName, float], wall_s: float) -> Goodput | None:
    """How many requests met every limit; None without limits or requests."""
    if not limits_s or not samples:
        return None
    good = sum(_meets(sample, limits_s) for sample in samples)
    return Goodput(limits_s=dict(limits_s), good=good, share=good / len(samples), requests_s=good / wall_s if wall_s > 0 else None)


def _meets(sample: Sample, limits_s: Mapping[LimitName, float]) -> bool:
    times: dict[LimitName, float | None] = {"ttft": sample.ttft_ms, "tpot": sample.tpot_ms, "e2el": sample.e2el_ms}
    return sample.error is None and all((times[name] or 0.0) <= 1e3 * limit for name, limit in limits_s.items())


def level_of(
    samples: Sequence[Sample], spec: LoadSpec, *, concurrency: int | None, wall_s: float, peak: int, warm_up: Sequence[Sample], client: ClientLoad
) -> Level:
    """One level's record.

    Args:
        samples: All requests that count.
        spec: What was asked for.
        concurrency: Workers; None in the open loop.
        wall_s: First send to last end.
        peak: Most requests under way at once.
        warm_up: The requests before.
        client: What the test asked of its own process.
    """
    errors = failures(samples)
    return Level(
        concurrency=concurrency, rate=spec.rate, sent=len(samples), succeeded=len(samples) - sum(errors.values()), errors=errors,
        examples={name: next(sample.detail for sample in samples if sample.error == name) for name in errors},
        without_usage=sum(sample.error is None and not sample.with_usage for sample in samples), wall_s=wall_s, peak_in_flight=peak,
        warm_up=len(warm_up), warm_up_errors=failures(warm_up), metrics=summarize(samples, wall_s, seed=spec.seed),
        goodput=goodput(samples, spec.slo, wall_s), client=client, samples=tuple(samples),
    )  # fmt: skip


def notes_on(levels: Iterable[Level], *, different: int | None, asked: int) -> tuple[str, ...]:
    """What a reader has to know before believing the numbers, one sentence each.

    Args:
        levels: All levels.
        different: Different prompts; None where each request had its own.
        asked: Requests in all, warm-up included.
    """
    found: list[str] = []
    for level in levels:
        if level.client.saturated:
            found.append(f"{level.name}: {level.client.sentence()}")
        if level.errors:
            named = ", ".join(f"{count} {name} ({level.examples[name] or 'nothing was said'})" for name, count in level.errors.items())
            found.append(f"{level.name}: {level.sent - level.succeeded} of {level.sent} requests failed: {named}.")
        if level.without_usage:
            what = f"{level.without_usage} answers came without usage"
            found.append(f"{level.name}: {what}; their tokens are chunks with text, and a chunk may hold several.")
        if 0 < level.succeeded < _FEW:
            found.append(f"{level.name}: p99 of {level.succeeded} requests is close to the slowest one; use --requests {_FEW} or more for it.")
    if different is not None and asked > different:
        found.append(f"{asked} requests shared {different} prompts; a server that caches prompts looks faster for it.")
    return tuple(found)


def refuse_existing(*paths: Path | None) -> None:
    """Makes sure that results can be written before time is spent on them.

    Raises:
        SpecError: A file exists already, or its folder does not.
    """
    for path in paths:
        if path is not None and path.exists():
            raise SpecError(f"{path} exists already; remove it or choose another name.")
        if path is not None and not path.parent.is_dir():
            raise SpecError(f"There is no folder {path.parent}; make it or choose another one.")


def write_new(path: Path, content: str) -> None:
    """Writes a file that does not exist yet.

    Raises:
        SpecError: It exists.
        StorageError: It cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except FileExistsError:
        raise SpecError(f"{path} exists already; remove it or choose another name.") from None
    except OSError as error:
        raise storage_error(path, error) from None
