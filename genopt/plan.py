"""What is tried: a plan of steps, an engine and its options, and how a candidate ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic import JsonValue as Json

from genopt.errors import SpecError

JsonValue = str | int | float | bool | None | list[str] | list[int]
Status = Literal["accepted", "rejected", "inconclusive", "infeasible", "failed", "skipped"]
Verdict = Literal["accept", "reject", "inconclusive", "anomalous", "reference"]


RATES = ("throughput_tok_s@", "images_per_s@")
"""How the names of metrics of throughput begin; the number of streams follows."""


class Record(BaseModel):
    """Base of all values that are stored or cross a process boundary: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Settings = TypeVar("Settings", bound=Record)


def parse_settings(model: type[Settings], values: Mapping[str, JsonValue], what: str) -> Settings:
    """The parameters of a technique, or the options of an engine, as a record.

    Args:
        model: The record that declares them.
        values: By name.
        what: Name of the technique or engine, for the error.

    Raises:
        SpecError: One is unknown or has a value that cannot be used.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place, known = ".".join(map(str, problem["loc"])), ", ".join(model.model_fields) or "none"
        raise SpecError(f"Bad setting {place!r} of {what} ({problem['msg']}); known settings: {known}.") from None


class Step(Record):
    """One transform with its parameters."""

    technique: str
    params: dict[str, JsonValue] = Field(default_factory=dict)


class Plan(Record):
    """Transforms, then an engine, then its runtime options.

    Attributes:
        name: Unique within a run; `original` and `baseline` are the two references.
        steps: Transforms in order of application.
        engine: Name of a catalogue engine.
        options: Runtime options of that engine.
    """

    name: str
    steps: tuple[Step, ...] = ()
    engine: str
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """What a user may call it by: its name, its engine, its techniques."""
        return self.name, self.engine, *(step.technique for step in self.steps)

    def identity(self) -> str:
        """A digest over everything but the name: two plans with the same digest are the same candidate."""
        content = self.model_dump(mode="json", exclude={"name"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Artifact(Record):
    """Bytes in the store, named by the digest of their file list."""

    digest: str
    path: str
    bytes: int
    traits: tuple[str, ...] = ()
    effective_bits: float | None = None


class Metric(Record):
    """A measured quantity: median with a bootstrap 95 % interval and percentiles over `n` samples."""

    value: float
    unit: str
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 1
    conditions: dict[str, JsonValue] = Field(default_factory=dict)


class Ratio(Record):
    """A ratio with its 95 % interval; above 1 is better."""

    value: float
    ci_low: float
    ci_high: float


class Quality(Record):
    """The gate's decision about a candidate's output quality against the original."""

    metric: str
    ratio: float
    ci_low: float
    ci_high: float
    n: int
    verdict: Verdict
    details: dict[str, Json] = Field(default_factory=dict)


class Prediction(Record):
    """What was expected of a candidate before it was measured.

    Attributes:
        metric: Name of the metric that is predicted.
        value: Its expected value.
        unit: Its unit.
        ci_low: Lower end of the 95 % interval.
        ci_high: Upper end.
        vs_baseline: Expected speedup; None before the baseline was measured.
        chance: Prior chance that the output quality holds the bar.
        seconds: Expected wall time from build to verdict.
    """

    metric: str
    value: float
    unit: str
    ci_low: float
    ci_high: float
    vs_baseline: float | None = None
    chance: float = 1.0
    seconds: float = 0.0


class Earlier(Record):
    """Where numbers come from that were not found in this run.

    Attributes:
        what: The `quality`, or `everything` that is said about the candidate.
        run: Folder of the run that found them.
        measured: When, in Unix seconds.
        environment: What they were found with.
    """

    what: Literal["quality", "everything"]
    run: str
    measured: float
    environment: dict[str, Json] = Field(default_factory=dict)


class Candidate(Record):
    """A candidate as the report shows it; `earlier` tells what of it other runs found."""

    name: str
    status: Status
    reason: str
    steps: tuple[Step, ...] = ()
    engine: str
    options: dict[str, JsonValue] = Field(default_factory=dict)
    artifact: Artifact | None = None
    metrics: dict[str, Metric] = Field(default_factory=dict)
    quality: Quality | None = None
    speedup: dict[str, Ratio] = Field(default_factory=dict)
    predicted: Prediction | None = None
    earlier: tuple[Earlier, ...] = ()

    @property
    def rates(self) -> dict[int, Metric]:
        """Units of work a second by number of simultaneous streams, of whatever its task generates."""
        return rates_of(self.metrics)

    @property
    def is_measured(self) -> bool:
        """Whether its speed was measured in this run."""
        return bool(self.speedup) and not any(one.what == "everything" for one in self.earlier)


def rates_of(metrics: Mapping[str, Metric]) -> dict[int, Metric]:
    """Those of metrics that are units of work a second, by number of simultaneous streams."""
    return {int(name.partition("@")[2]): metric for name, metric in metrics.items() if name.startswith(RATES)}


def plan_of(candidate: Candidate) -> Plan:
    """The plan behind a candidate."""
    return Plan(name=candidate.name, steps=candidate.steps, engine=candidate.engine, options=candidate.options)
