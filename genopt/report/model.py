"""What report.json holds: the contract with everything that reads a finished run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from genopt.models.pipeline import Component, Denoiser
from genopt.plan import Candidate, Ratio, Record
from genopt.profiling.records import Bottleneck, GraphBreaks, Phase
from genopt.quality.preference import HumanResult
from genopt.search.precision import Sensitivity
from genopt.spec import Objective

SCHEMA_VERSION = 1
REFERENCES = ("original", "baseline")
"""Names of the two candidates that the others are compared with; always the first ones."""


class ReportedModel(Record):
    """The model that was optimized.

    Only `id` is known of a run that ended before its model was found; `digest` is empty then.

    Attributes:
        id: What the user gave.
        digest: Digest over the folder's files.
        modality: What it makes.
        architecture: Class name from its configuration.
        parameters: Elements of all stored tensors.
        bytes: Size of the weight files.
        path: Its folder at the time of the run.
        library: What loads it.
        task: Catalogue name of its task.
        revision: Commit of the hub, or None.
        dtype: The dtype that most parameters have.
        max_context: Tokens of the longest sequence; 0 where that means nothing.
        note: What readers must know about the weights, or an empty text.
        components: The parts of a pipeline; none for language models.
        denoiser: What kind of network denoises in a pipeline, where that is known.
    """

    id: str
    digest: str = ""
    modality: str = ""
    architecture: str = ""
    parameters: int = 0
    bytes: int = 0
    path: str = ""
    library: str = ""
    task: str = ""
    revision: str | None = None
    dtype: str = ""
    max_context: int = 0
    note: str = ""
    components: tuple[Component, ...] = ()
    denoiser: Denoiser | None = None


class BudgetUse(Record):
    """Wall-clock seconds: what was allowed, what was used, and in which phases."""

    total_s: float
    spent_s: float
    phases: dict[str, float] = Field(default_factory=dict)


class Profile(Record):
    """The roofline of the original on this hardware.

    Attributes:
        advice: What the profile as a whole suggests.
        ceilings: What the hardware was measured to reach, by name with its unit.
        mbu: Share of the reachable memory bandwidth that is used, or None.
        mfu: Share of the reachable arithmetic rate that is used, or None.
        phases: Phases of generation against the hardware's limits, with the families and operators that take their time.
        graph_breaks: What `torch.compile` would make of a step, or None.
        traces: Files for Perfetto or chrome://tracing by phase, relative to the run folder.
        ceilings_origin: When the ceilings were measured, and why.
        details: All else that was measured.
    """

    advice: str = ""
    ceilings: dict[str, float] = Field(default_factory=dict)
    mbu: float | None = None
    mfu: float | None = None
    phases: tuple[Phase, ...] = ()
    graph_breaks: GraphBreaks | None = None
    traces: dict[str, str] = Field(default_factory=dict)
    ceilings_origin: str = ""
    details: dict[str, Any] = Field(default_factory=dict)


class Deployment(Record):
    """Where a variant of this run is served, and whether its callers show an API key."""

    url: str
    application: str = ""
    variant: str = ""
    needs_key: bool = False


class Report(Record):
    """A run as report.json gives it.

    Attributes:
        schema_version: Rises when a key changes its meaning.
        created: Time of the last journal entry that it covers, ISO 8601 in UTC; the same journal gives the same report.
        run: The run folder.
        interrupted: The run was stopped, or its driver died, before it was done.
        ended: Why the run ended, as its driver recorded it.
        objective: What the winner was chosen by.
        quality_bar: Share of the original's quality that a candidate had to hold.
        seed: Seed of everything random.
        aa: The baseline timed against itself: how far from 1 noise alone moves a ratio.
        evaluation: The text or prompts behind the quality ratios.
        candidates: All that were tried; `original` and `baseline` first, or none where the run ended before them.
        pareto: Names of those that nothing else beats in every respect.
        winner: An accepted candidate, or None when the baseline is kept.
        decision: Why that one.
        deployment: Set while a variant is served.
        human: What people preferred, one entry per comparison with votes.
        sensitivity: What rounding one part of the model at a time costs, or None.
        sensitivity_note: Why that was not tried, where it would have been of use.
    """

    schema_version: Literal[1] = 1
    created: str
    run: str
    interrupted: bool
    ended: str
    objective: Objective
    quality_bar: float
    seed: int
    model: ReportedModel
    hardware: dict[str, Any]
    environment: dict[str, Any]
    budget: BudgetUse
    bottlenecks: tuple[Bottleneck, ...]
    profile: Profile | None
    aa: Ratio | None
    evaluation: dict[str, Any]
    candidates: tuple[Candidate, ...]
    pareto: tuple[str, ...]
    winner: str | None
    decision: str
    next_steps: tuple[str, ...]
    deployment: Deployment | None
    human: tuple[HumanResult, ...] = ()
    sensitivity: Sensitivity | None = None
    sensitivity_note: str = ""

    @property
    def winning(self) -> Candidate | None:
        """The winner itself."""
        return next((candidate for candidate in self.candidates if candidate.name == self.winner), None)

    @property
    def tried(self) -> tuple[Candidate, ...]:
        """The candidates without the two references."""
        return tuple(candidate for candidate in self.candidates if candidate.name not in REFERENCES)
