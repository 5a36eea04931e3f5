"""What to do next, derived from what a run found."""

from __future__ import annotations

import shlex

from genopt import catalog
from genopt.environments.declaration import declared
from genopt.environments.place import build_command
from genopt.plan import Candidate
from genopt.report.model import Report
from genopt.report.wording import quality_percent

HAIR = 0.01
"""A rejected candidate whose quality misses the bar by less than this is worth a word."""
NOISE = 0.05
"""An A/A interval wider than this on either side hides the differences that the search looks for."""


def next_steps(report: Report) -> tuple[str, ...]:
    """Sentences in order of urgency; each names a command, a flag or a change of conditions."""
    found = [
        _unfinished(report), _people(report), _winner(report), _inconclusive(report), _skipped(report), _near(report), _failed(report),
        _noise(report), *_environments(report),
    ]  # fmt: skip
    weights = f"Mind the weights: {report.model.note}" if report.model.note else None
    return tuple(sentence for sentence in (*found, weights) if sentence)


def _with(report: Report, *statuses: str) -> list[Candidate]:
    return [candidate for candidate in report.tried if candidate.status in statuses]


def _names(candidates: list[Candidate]) -> str:
    names = ", ".join(candidate.name for candidate in candidates[:3])
    return names if len(candidates) <= 3 else f"{names} and {len(candidates) - 3} more"


def _unfinished(report: Report) -> str | None:
    if not report.candidates and not report.interrupted:
        return "Give the run a larger `--budget`: it ended before the baseline was measured."
    return f"Continue where the run stopped: `genopt resume {shlex.quote(report.run)}`." if report.interrupted else None


def _winner(report: Report) -> str | None:
    if report.winner is None or report.deployment is not None:
        return None
    return f"Deploy {report.winner}: `genopt deploy {shlex.quote(report.run)}`."


def _inconclusive(report: Report) -> str | None:
    undecided = _with(report, "inconclusive")
    if not undecided:
        return None
    if report.model.modality == "image" and not report.evaluation.get("scorer"):
        return f"Decide {_names(undecided)} with a scorer of images: `--scorer` takes a CLIP model, a classifier or a Python function."
    more = "more prompts" if report.model.modality == "image" else "more evaluation text (a longer `--eval-data`)"
    return f"Decide {_names(undecided)} with {more} or more time (a larger `--budget`)."


def _skipped(report: Report) -> str | None:
    skipped = _with(report, "skipped")
    if not skipped:
        return None
    return f"Try {_names(skipped)} with a `--budget` above {report.budget.total_s:.0f} s, or leave others out with `--exclude`."


def _near(report: Report) -> str | None:
    """Of those that just miss the bar, the fastest that would beat the winner."""
    best = report.winning.speedup["vs_baseline"].value if report.winning and "vs_baseline" in report.winning.speedup else 1.0
    near = [
        (candidate.speedup["vs_baseline"].value, candidate, candidate.quality) for candidate in _with(report, "rejected")
        if candidate.quality and candidate.quality.verdict == "reject" and "vs_baseline" in candidate.speedup
        and report.quality_bar - HAIR <= candidate.quality.ratio < report.quality_bar and candidate.speedup["vs_baseline"].value > best
    ]  # fmt: skip
    if not near:
        return None
    speed, candidate, quality = max(near, key=lambda entry: entry[0])
    return (
        f"If {quality_percent(quality.ci_low)} of the original's quality is enough, lower the bar: {candidate.name} is {speed:.2f}× as fast "
        f"as the baseline and misses it by a hair (try `--quality {int(1000 * quality.ci_low) / 10:g}%`)."
    )


def _failed(report: Report) -> str | None:
    failed = _with(report, "failed")
    return f"Look into {_names(failed)}: the reasons stand in the table, the full output in the run folder's logs." if failed else None


def _environments(report: Report) -> list[str]:
    """Environments that the nodes lacked, of those whose engines or techniques are for such nodes and such models."""
    lacking = [name for name, state in report.environment.get("engine_environments", {}).items() if state != "built"]
    device = "gpu" if report.hardware.get("gpus") else "cpu"
    engines = [catalog.load("engines", name) for name in catalog.names("engines")]
    techniques = [catalog.load("techniques", name) for name in catalog.names("techniques")]
    task = report.model.task
    originals = catalog.load("tasks", task).space().original if task in catalog.names("tasks") else frozenset()
    fitting = {engine.environment for engine in engines if report.model.modality in ("", engine.modality)}
    fitting |= {technique.environment for technique in techniques if technique.requires & originals}
    known = [one for one in declared() if one.name in lacking and one.name in fitting and one.device == device]
    return [f"Add {one.name} with `{build_command(one.name)}` and optimize again: {one.about}." for one in known]


def _people(report: Report) -> str | None:
    """The winner, where people disagree with the gate about it."""
    against = [result for result in report.human if result.relation == "contradicts" and report.winner in (result.a, result.b)]
    if not against:
        return None
    return f"Listen to people before you deploy {report.winner}: {against[0].decision}"


def _noise(report: Report) -> str | None:
    if report.aa is None or (report.aa.ci_low >= 1 - NOISE and report.aa.ci_high <= 1 + NOISE):
        return None
    return (
        f"Measure on a quiet machine: the baseline against itself came out between {report.aa.ci_low:.2f} and {report.aa.ci_high:.2f}, "
        "so smaller differences than that are noise."
    )
