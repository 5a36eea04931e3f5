"""The task protocol: what a modality tells the orchestrator, which knows none of them by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import PurePath
from typing import Any, Literal, Protocol

from pydantic import JsonValue as Json

from genopt import catalog
from genopt.plan import Artifact, Candidate, Earlier, JsonValue, Plan, Record, Status
from genopt.search.space import Point, Space, Tunable
from genopt.spec import Reuse, RunSpec

Progress = Callable[[str], None]


class BenchConfig(Record):
    """What a bench needs to measure and judge candidates on one node.

    Attributes:
        original: Folder of the original model.
        artifact: The original as an artifact.
        data: File that the task's prepare stage wrote.
        logs: Folder for the sessions' logs.
        quality: Quality bar.
        concurrency: Numbers of streams at which throughput is measured.
        output_tokens: New tokens per measured request.
        arrivals: How requests arrive beside that; see `RunSpec.arrivals`.
        precision: Half-width of a speedup's interval at which it counts as decided.
        threads: CPU threads of every session.
        parameters: Parameter count of the original.
        seed: Seed of resampling.
        environment: Environment variables of the sessions.
        store: Folder or URI of artifacts; empty takes the default one.
        libraries: Versions of what computes, by name, and digests of the environments that engines run in.
        shared: Folders of the driver's machine that others may lack, as artifacts of the store, by path.
        run: The run's folder.
        reuse: What may be taken over from earlier runs; see `RunSpec.reuse`.
        batches_decide: Whether throughput counts for the choice of the winner.
        alone: Whether nothing else is measured on the node meanwhile, as it is on the other parts of one with several GPUs.
    """

    original: str
    artifact: Artifact
    data: str
    logs: str
    quality: float
    concurrency: tuple[int, ...]
    output_tokens: int
    arrivals: str = "closed"
    precision: float = 0.02
    threads: int
    parameters: int
    seed: int
    environment: dict[str, str] = {}
    store: str = ""
    libraries: dict[str, str] = {}
    shared: dict[str, Artifact] = {}
    run: str = ""
    reuse: Reuse = "nothing"
    batches_decide: bool = False
    alone: bool = True


Again = Literal["no", "now", "later"]


class StageTime(Record):
    """When a node worked for a candidate; Unix seconds on that node's clock."""

    stage: Literal["build", "measure"]
    node: str
    started: float
    ended: float


class Evaluation(Record):
    """A measured and judged candidate with its raw samples.

    Attributes:
        candidate: As the report shows it.
        samples: Raw timing samples.
        seconds: Wall time of the evaluation.
        stages: Which nodes worked for it, and when.
        again: Whether another attempt may end otherwise, because the cause lay outside the candidate (a lost node, a full
            disk, memory that others held): `now`, or `later` in a resumption.
    """

    candidate: Candidate
    samples: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    stages: tuple[StageTime, ...] = ()
    again: Again = "no"


def failed(plan: Plan, status: Status, reason: str, artifact: Artifact | None = None) -> Candidate:
    """A candidate that ended without a verdict: `failed`, `infeasible` or `skipped`."""
    return Candidate(
        name=plan.name, status=status, reason=reason, steps=plan.steps, engine=plan.engine, options=plan.options, artifact=artifact
    )  # fmt: skip


def told(earlier: Earlier) -> str:
    """Where something comes from, in words."""
    day = datetime.fromtimestamp(earlier.measured, UTC)
    return f"the run {PurePath(earlier.run).name} on {day:%Y-%m-%d at %H:%M} UTC"


def session_options(plan: Plan, threads: int) -> dict[str, JsonValue]:
    """The engine's options of a plan on a node that gives it `threads` threads.

    The option `spare_threads`, which any plan may carry, leaves that many of them to others.
    """
    options = {name: value for name, value in plan.options.items() if name != "spare_threads"}
    spare = plan.options.get("spare_threads", 0)
    options.setdefault("threads", max(1, threads - (spare if isinstance(spare, int) else 0)))
    return options


def environments_of(plan: Plan) -> frozenset[str]:
    """The engine environments that a plan's steps and engine run in, besides ours."""
    parts = (_environment("engines", plan.engine), *(_environment("techniques", step.technique) for step in plan.steps))
    return frozenset(part for part in parts if part is not None)


@cache
def _environment(kind: Literal["engines", "techniques"], name: str) -> str | None:
    """Kept, since a search asks for thousands of candidates."""
    found: str | None = catalog.load(kind, name).environment
    return found


@cache
def _needs_gpu(technique: str) -> bool:
    found: bool = catalog.load("techniques", technique).gpu == "needed"
    return found


@cache
def _bound_to_gpus(engine: str) -> tuple[Tunable, ...]:
    return tuple(tunable for tunable in catalog.load("engines", engine).tunables if tunable.gpu)


def needs_gpu(plan: Plan) -> bool:
    """Whether a step of a plan or an option of its engine works only on a GPU; engines that do are kept by their environments."""
    if any(_needs_gpu(step.technique) for step in plan.steps):
        return True
    return any(plan.options.get(tunable.name, tunable.choices[0]) != tunable.choices[0] for tunable in _bound_to_gpus(plan.engine))


def fits(plan: Plan, traits: Collection[str]) -> bool:
    """Whether a plan begins with an original of these traits: some begin only with what was given in a certain format."""
    return not plan.steps or catalog.load("techniques", plan.steps[0].technique).requires <= frozenset(traits)


class Prepared(Record):
    """What a task's prepare stage leaves behind.

    Attributes:
        data: File that the task's bench and profile stage read.
        calibration: File that transforms calibrate on.
        calibration_digest: Digest of its text.
        digest: Digest of all that is measured and judged with.
    """

    data: str
    calibration: str
    calibration_digest: str
    digest: str = ""


class References(Record):
    """The two references and how noisy the machine is."""

    original: Candidate
    baseline: Candidate
    aa: dict[str, float]
    samples: tuple[dict[str, Any], ...] = ()
    evaluation: dict[str, Json]


class Bench(Protocol):
    """Measures and judges on one node; keeps the references open between candidates."""

    def references(self, deadline: float, progress: Progress) -> References:
        """Opens and measures the original and the baseline.

        Args:
            deadline: When it must be done, on the clock of `genopt.clock.now`.
            progress: Told what happens.
        """

    def evaluate(self, plan: Plan, artifact: Artifact, deadline: float, progress: Progress) -> Evaluation:
        """Audits, measures and judges one candidate. Failures are in the result, not raised."""

    def lost(self) -> bool:
        """Whether the original or the baseline has died since, so that both have to be measured again."""

    def close(self) -> None:
        """Ends all processes of the bench."""


def time_box(seconds: float) -> float:
    """A parameter `time_s` of about so many seconds: whole ones, so that candidates of runs alike are the same, and never none."""
    return float(max(1, round(seconds)))


class Task(Protocol):
    """An entry of the catalogue's tasks."""

    name: str
    modality: str
    prepare_stage: str
    profile_stage: str
    tasks_stage: str
    """Scores a model on tasks (`genopt.tasks.text_finalists.TaskRequest`); empty where the modality has none."""
    sensitivity_stage: str
    """Tells which parts of a model bear fewer bits (`genopt.quality.sensitivity`); empty where the modality has none."""
    pace_metric: str
    """Milliseconds per unit of work, which the search minimizes and predicts."""
    given: Mapping[str, str]
    """Models that a user may give beside the original, by kind: what each is, in a few words."""

    @staticmethod
    def require_inputs(spec: RunSpec) -> None:
        """Refuses at once what would fail late.

        Raises:
            GenoptError: The spec names data that cannot be used, or something that is not installed.
        """

    @staticmethod
    def references() -> tuple[Plan, Plan]:
        """The plans of `original` and `baseline`."""

    @staticmethod
    def catalogue(given: Mapping[str, str], budget_s: float) -> list[Plan]:
        """The candidates that every run tries first, cheap and promising ones first.

        Args:
            given: Digests of the models that were given beside the original, by kind.
            budget_s: Time of the whole run, of which a candidate that is trained takes a share.
        """

    @staticmethod
    def families(plan: Plan) -> frozenset[str]:
        """Which families of remedies a plan belongs to, in the words of the profile's `family_order`."""

    @staticmethod
    def space() -> Space:
        """What is searched for further candidates."""

    @staticmethod
    def seeds() -> list[Point]:
        """Points of the space to try first; at least one."""

    @staticmethod
    def bench(config: BenchConfig) -> Bench:
        """A closed bench; cheap."""
