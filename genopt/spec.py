"""The run spec: everything that a run depends on, validated once and frozen."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from genopt.errors import SpecError
from genopt.plan import Plan, Record

Objective = Literal["latency", "throughput", "memory", "balanced"]
BY_THROUGHPUT: tuple[Objective, ...] = ("throughput", "balanced")
"""Objectives for which the largest batches count."""
ArrivalKind = Literal["poisson", "fixed"]
Reuse = Literal["nothing", "quality", "everything"]

_UNITS = (3600.0, 60.0, 1.0, 0.001)
"""Seconds of an hour, a minute, a second and a millisecond."""


def duration_s(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h`, `300ms`, `1h30m` or a plain number of seconds.

    Raises:
        ValueError: It is none of these.
    """
    number = r"\d+(?:\.\d+)?"
    if re.fullmatch(number, text.strip()):
        return float(text)
    parts = re.fullmatch(rf"(?:({number})h)?\s*(?:({number})m)?\s*(?:({number})s)?\s*(?:({number})ms)?", re.sub(r"\s+(?=[hms])", "", text.strip()))
    if parts is None or not any(parts.groups()):
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 10m, 1h or 1h30m")
    return sum(float(part) * unit for part, unit in zip(parts.groups(), _UNITS, strict=True) if part)


def parse_duration(value: object) -> object:
    """Turns text into seconds as `duration_s` does; leaves anything else alone."""
    return duration_s(value) if isinstance(value, str) else value


def parse_share(value: object) -> object:
    """Turns `99%` into 0.99; leaves numbers alone."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%)?\s*", value)
        if match is None:
            raise ValueError(f"{value!r} is not a share; write for example 99% or 0.99")
        return float(match[1]) / (100 if match[2] else 1)
    return value


def parse_slo(value: object) -> object:
    """Turns `ttft_p99=300ms,tpot_p99=30ms` into seconds by name; leaves mappings alone."""
    if isinstance(value, str):
        limits: dict[str, object] = {}
        for part in filter(None, (piece.strip() for piece in value.split(","))):
            name, separator, limit = part.partition("=")
            if not separator:
                raise ValueError(f"{part!r} is not a limit; write for example ttft_p99=300ms")
            limits[name.strip()] = parse_duration(limit)
        return limits
    return value


def parse_arrivals(value: str) -> tuple[ArrivalKind, float] | None:
    """Turns `poisson:2.5` or `fixed:2.5` into the kind and its requests per second, and `closed` into None.

    Raises:
        ValueError: It is neither.
    """
    if value == "closed":
        return None
    kind, _, rate = value.partition(":")
    try:
        per_second = float(rate)
    except ValueError:
        per_second = 0.0
    if kind not in ("poisson", "fixed") or not 0 < per_second < math.inf:
        raise ValueError(f"{value!r} says not how requests arrive; write closed, or a rate per second such as poisson:2.5 or fixed:2.5")
    return ("poisson" if kind == "poisson" else "fixed"), per_second


Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, BeforeValidator(parse_share)]
Bar = Annotated[float, BeforeValidator(lambda value: 0.0 if value == "off" else parse_share(value))]
SloName = Literal["ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "tpot_p90", "tpot_p99"]


class RunSpec(Record):
    """What `genopt optimize` is asked to do.

    Flags have keys here, with underscores for dashes, but for those that say where the keys are and what is shown (`--config`, `--progress`,
    `--json`); `--eval-task` is `eval_tasks`, and `--fresh` is `reuse: nothing`. `host` has no flag there.

    Attributes:
        model: Hugging Face id, local folder, `.gguf` file or built-in name.
        task: Catalogue name; None infers it from the model.
        budget: Wall-clock seconds from start to written report (accepts `60m`).
        quality: Quality bar as a share of the original's (accepts `99%`); 0, or `off`, looks at quality in passing and rejects nothing
            for it, which is right where only speed means something: random weights, for example.
        objective: What the winner is chosen by among accepted candidates.
        slo: Latency limits in seconds by name (accepts `ttft_p99=300ms`); where `arrivals` is set, of requests that arrive so.
        eval_data: Text, JSON lines or Parquet file for the quality gate, or JSON lines with a `prompt` and its `answer`, or
            `choices` with a `label`, that finalists are also asked; None uses Python's own help texts.
        eval_tasks: Tasks of lm-evaluation-harness that finalists do: names, or paths of YAML files.
        eval_limit: Most items of each task; None takes all.
        calib_data: Likewise for calibration; never overlaps the evaluation text.
        scorer: What says how good an image is: a folder with a CLIP model or an image classifier, or `module:callable`; None takes
            the classifier that the pipeline brings, if it does.
        given: Folders of models that candidates are made with, by kind; which kinds there are is the task's to say.
        include: Keep only candidates whose technique, engine or name contains one of these.
        exclude: Drop candidates whose technique, engine or name contains one of these.
        prompts: File of the user's own prompts to measure speed with: `.txt` with one a line, `.jsonl` with `prompt` or chat
            `messages`, or `.parquet` with a column of one of these names. None cuts them from the calibration text.
        prompt_tokens: Length of the measured prompts in tokens (ISL); prompts of one's own keep their length.
        output_tokens: New tokens per measured request (OSL).
        concurrency: Numbers of simultaneous streams at which throughput is measured, each a batch that starts at once.
        arrivals: How requests arrive beside that: `closed` measures nothing else; `poisson:RATE` and `fixed:RATE` also
            measure what callers wait where RATE requests a second arrive at random or evenly and queue for the next batch,
            as they do at a deployed replica.
        precision: Half-width of a speedup's interval at which it counts as decided (accepts `2%`).
        address: Ray cluster to join; None joins a local one or starts an embedded one.
        store: Artifacts: a folder that all nodes share, or the `s3://` or `gs://` URI of an object store, in front of which every
            machine keeps a cache below its own `$GENOPT_STORE`.
        out: Run folder to create.
        deploy: Deploy the winner at the end.
        host: Address that a deployment listens on.
        port: Port that a deployment listens on.
        max_trials: Upper bound of searched candidates; None searches until the budget ends.
        seed: Seed of everything random.
        trust_remote_code: Run code that comes with the model.
        reuse: What is taken over from earlier runs with the same model, data, libraries and hardware: `quality` takes what
            candidates said about the evaluation text, which is judged anew; `everything` takes whole candidates, and
            measures only those again that would win; `nothing` finds all numbers anew. Built artifacts are always reused.
    """

    schema_version: Literal[1] = 1
    model: str = Field(min_length=1)
    task: str | None = None
    budget: Duration = Field(default=3600.0, gt=0)
    quality: Bar = Field(default=0.99, ge=0, le=1)
    objective: Objective = "latency"
    slo: Annotated[dict[SloName, float], BeforeValidator(parse_slo)] = Field(default_factory=dict)
    eval_data: str | None = None
    eval_tasks: tuple[str, ...] = ()
    eval_limit: int | None = Field(default=None, gt=0)
    calib_data: str | None = None
    scorer: str | None = None
    given: dict[str, str] = Field(default_factory=dict)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prompts: str | None = None
    prompt_tokens: int = Field(default=64, ge=2)
    output_tokens: int = Field(default=32, ge=4)
    concurrency: tuple[int, ...] = (1, 4)
    arrivals: str = "closed"
    precision: Share = Field(default=0.02, gt=0, lt=1)
    address: str | None = None
    store: str | None = None
    out: str | None = None
    deploy: bool = False
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    max_trials: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    trust_remote_code: bool = False
    reuse: Reuse = "quality"

    @field_validator("concurrency")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("concurrency needs at least one number, each 1 or more")
        return tuple(sorted({1, *value}))

    @field_validator("arrivals")
    @classmethod
    def _arriving(cls, value: str) -> str:
        parse_arrivals(value)
        return value

    def wants(self, plan: Plan) -> bool:
        """Whether `include` and `exclude` leave a candidate in; both look into its name, engine and techniques."""
        included = not self.include or any(part in word for part in self.include for word in plan.words)
        return included and not any(part in word for part in self.exclude for word in plan.words)


def build(values: dict[str, Any]) -> RunSpec:
    """Validates values into a spec.

    Raises:
        SpecError: With the path of the first key that cannot be used and the remedy.
    """
    try:
        return RunSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"]) or "spec"
        if first["type"] == "extra_forbidden":
            known = ", ".join(RunSpec.model_fields)
            raise SpecError(f"Unknown key {path!r}; known keys are {known}.") from None
        raise SpecError(f"Bad value for {path!r}: {first['msg'].removeprefix('Value error, ')}.") from None


def load(path: Path) -> dict[str, Any]:
    """Reads a spec file (YAML) into a plain mapping; flags may be laid over it before `build`.

    Raises:
        SpecError: The file is missing or is not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"Cannot read the spec {path}: {error.strerror}; give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid YAML ({str(error).splitlines()[0]}); mend it or leave --config out.") from None
    if not isinstance(content, dict):
        raise SpecError(f"{path} must hold a mapping of keys to values, like `model: smollm2-135m`.")
    return content


def dump(spec: RunSpec) -> str:
    """The resolved spec as YAML; `genopt optimize --config` repeats the run from it."""
    text: str = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    return text


OBJECTIVES: tuple[str, ...] = get_args(Objective)
