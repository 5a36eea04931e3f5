"""What benches of every modality do alike: open the references, put a candidate to the test, and say how fast it was."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from genopt import clock
from genopt.errors import GenoptError, InfeasibleError, OutOfMemoryError, StageError, StageTimeoutError, from_wire, to_wire
from genopt.measure.duel import Comparison
from genopt.measure.statistics import half_width
from genopt.plan import Artifact, Candidate, Metric, Plan, rates_of
from genopt.process import EngineProcess
from genopt.quality.audit import audit
from genopt.tasks.base import Again, BenchConfig, Evaluation, Progress, failed
from genopt.tasks.sessions import RoleSessions

AGAIN: Mapping[type[GenoptError], Again] = {OutOfMemoryError: "now", StageTimeoutError: "later"}
"""Failures that say little about the candidate: something else may have held the memory, or the time."""
Process = TypeVar("Process", bound=EngineProcess)
Rows = tuple[dict[str, Any], ...]


class Opened(NamedTuple):
    """What the baseline is.

    Attributes:
        plan: Its plan: that of the original under its own name, where the baseline cannot run here.
        note: What it is, in words.
    """

    plan: Plan
    note: str


def open_references(
    sessions: RoleSessions[Process], plans: tuple[Plan, Plan], folder: Path, deadline: float, progress: Progress, *, note: str
) -> Opened:  # fmt: skip
    """Opens `original` and `baseline`; where the latter fails for what it is, as when the model cannot be compiled, the original takes its place.

    Args:
        sessions: Where.
        plans: Of both.
        folder: The original model.
        deadline: When they must be open.
        progress: Told what happens.
        note: What the baseline is.

    Raises:
        GenoptError: The original cannot be opened, or there was too little memory or time for the baseline.
    """
    original, baseline = plans
    progress("opening the original")
    sessions.open("original", original, folder, deadline)
    progress("opening the baseline")
    try:
        sessions.open("baseline", baseline, folder, deadline)
    except (OutOfMemoryError, StageTimeoutError):
        raise
    except (InfeasibleError, StageError) as error:
        baseline = original.model_copy(update={"name": "baseline"})
        sessions.open("baseline", baseline, folder, deadline)
        return Opened(baseline, f"the original itself, because the baseline cannot run here: {error}")
    return Opened(baseline, note)


def attempt(
    config: BenchConfig,
    sessions: RoleSessions[Process],
    plan: Plan,
    artifact: Artifact,
    deadline: float,
    progress: Progress,
    measure: Callable[[Artifact, Process], tuple[Candidate, Rows]],
) -> Evaluation:
    """Audits and opens a candidate, has it measured and judged, and closes it. Failures are in the result, not raised.

    Args:
        config: The bench's.
        sessions: Where it is opened.
        plan: The candidate.
        artifact: Its files.
        deadline: When it must be done.
        progress: Told what happens.
        measure: Measures and judges the open session of the audited artifact.
    """
    started = clock.now()
    again: Again = "no"
    samples: Rows = ()
    try:
        progress("auditing")
        checked = audit(Path(artifact.path), config.parameters)
        artifact = artifact.model_copy(update={"effective_bits": checked.effective_bits})
        if checked.problems:
            raise StageError(f"The artifact fails its audit: {checked.problems[0]}.")
        progress("opening")
        candidate, samples = measure(artifact, sessions.open("candidate", plan, Path(artifact.path), deadline))
    except InfeasibleError as error:
        candidate = failed(plan, "infeasible", str(error), artifact)
    except GenoptError as error:
        candidate = failed(plan, "failed", str(error), artifact)
        again = AGAIN.get(type(error), "no")
    except Exception as error:  # noqa: BLE001 - what nobody foresaw is the candidate's fate too, and no reason to doubt the node
        candidate = failed(plan, "failed", str(unforeseen(error, Path(config.logs), plan.name)), artifact)
    finally:
        sessions.close("candidate")
    return Evaluation(candidate=candidate, samples=samples, seconds=clock.now() - started, again=again)


def unforeseen(error: Exception, logs: Path, name: str) -> GenoptError:
    """Makes a reason of an error that nobody foresaw, and keeps its traceback; one of ours is returned as it is.

    Args:
        error: What was raised.
        logs: The run's folder of logs.
        name: Of what failed.
    """
    if isinstance(error, GenoptError):
        return error
    log = logs / f"{name}.error.log"
    log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    found = from_wire(to_wire(error))
    return type(found)(f"{found.message} (a defect or this machine's; {log} has where)", found.details)


def pace_of(speed: Comparison, baseline: Mapping[str, Metric]) -> str:
    """How fast a candidate was in words, with what makes it less certain than asked for.

    Args:
        speed: What was measured.
        baseline: The baseline's metrics where throughput decides, so that it is told, too; else empty.
    """
    said = f"{speed.ratio.value:.2f}x the baseline's speed"
    if not speed.decided:
        said += f" (known to ±{100 * half_width(speed.ratio):.0f}% only)"
    mine, theirs = rates_of(speed.candidate_metrics), rates_of(baseline)
    if (most := max(theirs, default=0)) in mine:
        said += f" and {mine[most].value / theirs[most].value:.2f}x its throughput with {most} at once"
    return f"{said}, on a node that was not quiet" if speed.contended else said
