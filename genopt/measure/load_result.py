"""What a load test found, from one value per request, and how it is written down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from genopt.errors import SpecError
from genopt.measure.load_answer import ErrorName
from genopt.measure.load_client import Sample, failures
from genopt.measure.load_spec import LimitName, LoadSpec
from genopt.measure.saturation import ClientLoad
from genopt.measure.statistics import metric, percentiles
from genopt.plan import Metric, Record
from genopt.store.files import storage_error

DEFINITIONS = {
    "ttft_ms": "send to the first chunk with text",
    "tpot_ms": "(E2EL - TTFT)/(n - 1) for n tokens; a request with one token or with all text in one chunk has none",
    "e2el_ms": "send to the last chunk with text, or to the end of an answer in one piece",
    "itl_ms": "gap between two chunks with text; percentiles over all gaps of all requests, so n counts gaps",
    "itl_max_ms": "longest gap of each request",
    "prompt_tokens": "tokens of a prompt with the chat template, as the server counts them",
    "output_tokens": "new tokens of a request: the server's usage, else its chunks with text",
    "output_tok_s": "new tokens of all successful requests over the level's wall time, first send to last end; absent where a count is missing",
    "requests_s": "successful requests over the same time",
    "goodput": "requests that meet every limit, of all that were sent and per second; a request without TPOT meets its limit",
}
_TIMES = ("ttft_ms", "tpot_ms", "e2el_ms")
_FEW = 100
"""Under so many requests the 99th percentile leans on the slowest one or two."""
_FULL = 0.8
"""Share of its workers that a level has to keep busy on average, and of its arrivals that it has to answer meanwhile: at a level's end
fewer requests are left, and refused ones are no load."""


class Run(Protocol):
    """What happened at one level.

    Attributes:
        samples: All requests that count, in the order of their end.
        wall_s: First send to last end.
        request_s: Time of all requests together.
        peak: Most requests under way at once.
    """

    samples: list[Sample]
    request_s: float
    peak: int

    @property
    def wall_s(self) -> float:
        """See above."""


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
        mean_in_flight: Requests under way at once, on average over the wall time; None where no time passed.
        peak_in_flight: The most of them.
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
    mean_in_flight: float | None
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
        interrupted: Ctrl-C came before all levels were measured; those that had ended are here.
        client_saturated: Whether any level's times may be the client's.
        notes: What a reader has to know before believing the numbers.
    """

    schema_version: Literal[1] = 1
    model: str
    spec: LoadSpec
    definitions: dict[str, str]
    levels: tuple[Level, ...]
    interrupted: bool = False
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
    columns |= {"output_tokens": [sample.tokens for sample in good], "itl_max_ms": [max(sample.itl_ms, default=None) for sample in good]}
    found: dict[str, Metric] = {}
    for name, values in columns.items():
        present = [float(value) for value in values if value is not None]
        if present:
            found[name] = metric(present, "tokens" if name.endswith("tokens") else "ms", seed=seed)
    gaps = [gap for sample in good for gap in sample.itl_ms]
    if gaps:
        # Without an interval: gaps of one request are alike, and resampling them one by one would pretend to far more evidence than there is.
        p50, p90, p99 = percentiles(gaps)
        found["itl_ms"] = Metric(value=p50, unit="ms", p50=p50, p90=p90, p99=p99, n=len(gaps))
    if good and wall_s > 0:
        counts = [sample.tokens for sample in good if sample.tokens is not None]
        if len(counts) == len(good):
            found["output_tok_s"] = Metric(value=sum(counts) / wall_s, unit="tok/s", n=len(good))
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


def level_of(run: Run, spec: LoadSpec, *, concurrency: int | None, rate: float | None, warm_up: Sequence[Sample], client: ClientLoad) -> Level:
    """One level's record.

    Args:
        run: What happened.
        spec: What was asked for.
        concurrency: Workers; None in the open loop.
        rate: Mean arrivals per second; None in the closed loop.
        warm_up: The requests before.
        client: What the test asked of its own process.
    """
    samples, wall_s = run.samples, run.wall_s
    errors = failures(samples)
    return Level(
        concurrency=concurrency, rate=rate, sent=len(samples), succeeded=len(samples) - sum(errors.values()), errors=errors,
        examples={name: next(sample.detail for sample in samples if sample.error == name) for name in errors},
        without_usage=sum(sample.error is None and not sample.with_usage for sample in samples), wall_s=wall_s,
        mean_in_flight=run.request_s / wall_s if wall_s > 0 else None, peak_in_flight=run.peak,
        warm_up=len(warm_up), warm_up_errors=failures(warm_up), metrics=summarize(samples, wall_s, seed=spec.seed),
        goodput=goodput(samples, spec.slo, wall_s), client=client, samples=tuple(samples),
    )  # fmt: skip


def result_of(levels: Sequence[Level], spec: LoadSpec, *, model: str, different: int | None, interrupted: bool = False) -> LoadResult:
    """A load test's record.

    Args:
        levels: At least one.
        spec: What was asked for.
        model: The name that was asked for.
        different: Different prompts; None where each request had its own.
        interrupted: Whether levels are missing.
    """
    return LoadResult(
        model=model, spec=spec, definitions=DEFINITIONS, levels=tuple(levels), interrupted=interrupted,
        client_saturated=any(level.client.saturated for level in levels), notes=_notes(levels, spec, different),
    )  # fmt: skip


def _notes(levels: Sequence[Level], spec: LoadSpec, different: int | None) -> tuple[str, ...]:
    """What a reader has to know before believing the numbers, one sentence each."""
    found = [f"{level.name}: {remark}" for level in levels for remark in _remarks(level, spec.stream)]
    few = [f"{level.succeeded} ({level.name})" for level in levels if 0 < level.succeeded < _FEW]
    if few:
        found.append(f"The p99 of so few requests is close to the slowest one: {', '.join(few)}; use --requests {_FEW} or more for it.")
    asked = sum(level.sent + level.warm_up for level in levels)
    if different is not None and asked > different:
        found.append(f"{asked} requests shared {different} prompts; a server that caches prompts looks faster for it.")
    return tuple(found)


def _remarks(level: Level, stream: bool) -> Iterator[str]:
    if level.client.saturated:
        yield level.client.sentence()
    if level.errors:
        named = ", ".join(f"{count} {name} ({level.examples[name] or 'nothing was said'})" for name, count in level.errors.items())
        yield f"{level.sent - level.succeeded} of {level.sent} requests failed: {named}."
    if level.without_usage:
        counted = "their tokens are chunks with text, and a chunk may hold several" if stream else "their tokens are not known"
        yield f"{level.without_usage} answers came without usage; {counted}."
    if level.concurrency is not None and level.mean_in_flight is not None and level.mean_in_flight < _FULL * level.concurrency:
        yield f"only {level.mean_in_flight:.1f} requests were under way on average, so its throughput is that of less load; use more --requests."
    answered = level.metrics.get("requests_s")
    if level.rate is not None and answered is not None and answered.value < _FULL * level.rate:
        yield (
            f"only {answered.value:.2f} of {level.rate:g} requests a second were answered; if --duration 60s shows the same, more come than it "
            "can answer, and the times only tell how long the test was."
        )


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


def write_new(path: Path, content: bytes) -> None:
    """Writes a file that does not exist yet.

    Raises:
        SpecError: It exists.
        StorageError: It cannot be written.
    """
    try:
        with path.open("xb") as stream:
            stream.write(content)
    except FileExistsError:
        raise SpecError(f"{path} exists already; remove it or choose another name.") from None
    except OSError as error:
        raise storage_error(path, error) from None
