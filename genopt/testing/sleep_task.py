"""A task whose bench measures nothing: each candidate says itself how long it takes and what comes out.

Everything around the bench is real, so that what a run's own machinery does and costs can be seen.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from genopt import clock
from genopt.errors import StageError
from genopt.models.given import require_given
from genopt.plan import Artifact, Candidate, JsonValue, Metric, Plan, Quality, Ratio, Record, Step, Verdict
from genopt.search.space import Owner, Point, Space, Tunable
from genopt.spec import RunSpec
from genopt.tasks.base import Bench, BenchConfig, Evaluation, Progress, References
from genopt.testing.fake_technique import LOG

CATALOGUE = "GENOPT_FAKE_CATALOGUE"
"""Environment variable of the driver: a JSON file with the plans of the catalogue."""


class SleepOptions(Record):
    """Options of a candidate.

    Attributes:
        sleep_s: Time that its evaluation takes.
        speed: Times as fast as the baseline.
        quality: Share of the original's quality.
        wait_for: A file; the evaluation ends when it exists.
        sickens: On the GPU of this id the bench dies, and references fail from then on.
    """

    sleep_s: float = Field(default=0.0, ge=0)
    speed: float = 1.0
    quality: float = 1.0
    wait_for: str = ""
    sickens: str = ""


def sick_gpu() -> Path:
    """A file with the id of the GPU on which references fail; there is none unless a test or a candidate writes it."""
    return Path(os.environ.get(LOG, "")).parent / "sick_gpu"


def sleep_plan(name: str, *steps: Mapping[str, JsonValue], **options: JsonValue) -> Plan:
    """A plan of this task.

    Args:
        name: Its name.
        steps: Parameters of `genopt.testing.fake_technique`, one per step.
        options: See `SleepOptions`.
    """
    made = tuple(Step(technique="fake_transform", params=dict(params)) for params in steps)
    return Plan(name=name, steps=made, engine="fake", options=options)


class SleepBench:
    """See `genopt.tasks.base.Bench`.

    Args:
        config: Ignored but for the original.
    """

    def __init__(self, config: BenchConfig) -> None:
        self._config = config

    def references(self, deadline: float, progress: Progress) -> References:
        """See `Bench.references`; on the GPU that `sick_gpu` names it fails."""
        if sick_gpu().exists() and sick_gpu().read_text(encoding="utf-8") == os.environ.get("CUDA_VISIBLE_DEVICES"):
            raise StageError("This GPU is sick; replace it.")
        unit = Ratio(value=1.0, ci_low=1.0, ci_high=1.0)
        original, baseline = (
            self._candidate(plan, self._config.artifact, SleepOptions()).model_copy(update={"speedup": {"vs_original": unit, "vs_baseline": unit}})
            for plan in SleepTask.references()
        )
        return References(original=original, baseline=baseline, aa={"ci_low": 0.99, "value": 1.0, "ci_high": 1.01}, evaluation={})

    def evaluate(self, plan: Plan, artifact: Artifact, deadline: float, progress: Progress) -> Evaluation:
        """See `Bench.evaluate`."""
        options, started = SleepOptions.model_validate(plan.options), clock.now()
        if options.sickens and options.sickens == os.environ.get("CUDA_VISIBLE_DEVICES"):
            sick_gpu().write_text(options.sickens, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(options.sleep_s)
        while options.wait_for and not Path(options.wait_for).exists():
            time.sleep(0.02)
        return Evaluation(candidate=self._candidate(plan, artifact, options), seconds=clock.now() - started)

    @staticmethod
    def _candidate(plan: Plan, artifact: Artifact, options: SleepOptions) -> Candidate:
        ratio = Ratio(value=options.speed, ci_low=0.99 * options.speed, ci_high=1.01 * options.speed)
        held = options.quality >= 0.99
        share = options.quality
        verdict: Verdict = "accept" if held else "reject"
        quality = Quality(metric="likelihood", ratio=share, ci_low=share, ci_high=share, n=1000, verdict=verdict)
        milliseconds = 10.0 / options.speed
        where: dict[str, JsonValue] = {"cpus": sorted(os.sched_getaffinity(0)), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        return Candidate(
            name=plan.name, status="accepted" if held else "rejected", reason="as it said", steps=plan.steps, engine=plan.engine,
            options=plan.options, artifact=artifact, quality=quality, speedup={"vs_original": ratio, "vs_baseline": ratio},
            metrics={"tpot_ms": Metric(value=milliseconds, unit="ms", conditions=where), "load_s": Metric(value=0.1, unit="s")},
        )  # fmt: skip

    def lost(self) -> bool:
        """See `Bench.lost`: there is nothing that could be."""
        return False

    def close(self) -> None:
        """Nothing is held."""


class SleepTask:
    """See `genopt.tasks.base.Task`."""

    name = "sleep"
    modality = "text"
    prepare_stage = "prepare_text"
    profile_stage = "no such stage"
    """A profile that fails, as one may."""
    tasks_stage = ""
    sensitivity_stage = ""
    pace_metric = "tpot_ms"
    given: Mapping[str, str] = {"weights": "any model"}

    @staticmethod
    def require_inputs(spec: RunSpec) -> None:
        """Given models alone."""
        require_given(spec.given, SleepTask.given)

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """Neither takes any time."""
        return sleep_plan("original"), sleep_plan("baseline")

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """What the file names, and a candidate for each given model."""
        content = Path(os.environ[CATALOGUE]).read_text(encoding="utf-8")
        made = [sleep_plan(f"given-{kind}", {"label": kind, "given": digest}) for kind, digest in given.items()]
        return [*(Plan.model_validate(item) for item in json.loads(content)), *made]

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """None."""
        return frozenset()

    @staticmethod
    def space() -> Space:
        """Ways to be fast and ways to be good, which have nothing to do with each other."""
        tunables = (
            Tunable(name="speed", choices=(2.5, 1.5), words=("speed-2.5", "speed-1.5")),
            Tunable(name="quality", choices=(1.0, 0.9), words=("quality-1.0", "quality-0.9")),
            Tunable(name="sleep_s", choices=(0.1,), words=("",)),
        )
        return Space(engines=(Owner(name="fake", word="", tunables=tunables, accepts=frozenset({"hf"})),), techniques=())

    @staticmethod
    def seeds() -> list[Point]:
        """The best point first."""
        return [SleepTask.space().complete({})]

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench."""
        return SleepBench(config)
