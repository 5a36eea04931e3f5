"""Reads a run folder and says what the run found; measures nothing and asks no other source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from genopt.plan import Candidate, Ratio
from genopt.profiling.records import Bottleneck
from genopt.report.advice import next_steps
from genopt.report.human import human_results
from genopt.report.model import REFERENCES, BudgetUse, Deployment, Profile, Report, ReportedModel
from genopt.search.selection import choose
from genopt.spec import RunSpec, build, load
from genopt.store.run_folder import RunFolder

Event = Mapping[str, Any]

AFTER_RUNS = frozenset({"deployed", "undeployed", "canary_begun", "canary_ended"})
"""Events that deployments append, at any time, to the journal of a run that may have ended long before."""
_PROFILE_KEYS = ("advice", "ceilings", "ceilings_origin", "graph_breaks", "mbu", "mfu", "phases", "traces")


def assemble(folder: RunFolder) -> Report:
    """The report of a run that ended, was interrupted, or still goes on.

    The result depends on the folder alone, so that reports can be written again at any time.

    Args:
        folder: The run's folder.

    Raises:
        SpecError: The folder's spec cannot be used.
        StorageError: What people said cannot be read.
    """
    spec, events, facts = build(load(folder.path / "spec.yaml")), list(folder.events()), folder.environment()
    references = _last(events, "references")
    candidates = _candidates(references, events)
    aa = Ratio.model_validate(references["aa"]) if references else None
    winner, decision, pareto = _select(spec, candidates, aa)
    profile = dict((_last(events, "profile") or {}).get("profile", {}))
    bottlenecks = tuple(Bottleneck.model_validate(item) for item in profile.pop("bottlenecks", ()))
    finished = _finish(events)
    report = Report(
        created=_created(events), run=str(folder.path), interrupted=finished is None or bool(finished["interrupted"]),
        ended=str(finished.get("reason", "")) if finished else "the run was stopped before it could say why",
        objective=spec.objective, quality_bar=spec.quality, seed=spec.seed,
        model=ReportedModel.model_validate((_last(events, "model_resolved") or {}).get("model", {"id": spec.model})),
        hardware=facts.get("hardware", {}), environment=facts.get("environment", {}), budget=_budget(spec, events),
        bottlenecks=bottlenecks, profile=_profile(profile), aa=aa, evaluation=references["evaluation"] if references else {},
        candidates=candidates, pareto=pareto, winner=winner, decision=decision, next_steps=(), deployment=_deployment(events),
        human=human_results(folder.path, candidates), sensitivity=(_last(events, "sensitivity") or {}).get("sensitivity"),
        sensitivity_note=str((_last(events, "sensitivity_skipped") or {}).get("reason", "")),
    )  # fmt: skip
    return report.model_copy(update={"next_steps": next_steps(report)})


def _last(events: Sequence[Event], name: str) -> Event | None:
    return next((event for event in reversed(events) if event["event"] == name), None)


def _since_start(events: Sequence[Event]) -> Sequence[Event]:
    """The events of the last of the sessions that make up a resumed run."""
    starts = [index for index, event in enumerate(events) if event["event"] == "run_started"]
    return events[starts[-1] :] if starts else events


def _finish(events: Sequence[Event]) -> Event | None:
    """The end of the last session; None where its driver died or still works."""
    return _last(_since_start(events), "run_finished")


def _created(events: Sequence[Event]) -> str:
    last = float(events[-1]["time"]) if events else 0.0
    return datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds")


def _candidates(references: Event | None, events: Iterable[Event]) -> tuple[Candidate, ...]:
    """References first, then each candidate once, as it ended last; none before there is a baseline."""
    if references is None:
        return ()
    found = {name: Candidate.model_validate(references[name]) for name in REFERENCES}
    for event in events:
        if event["event"] == "candidate_finished":
            candidate = Candidate.model_validate(event["candidate"])
            found[candidate.name] = candidate
    return tuple(found.values())


def _select(spec: RunSpec, candidates: tuple[Candidate, ...], aa: Ratio | None) -> tuple[str | None, str, tuple[str, ...]]:
    """Winner, reason and Pareto front."""
    if not candidates or aa is None:
        return None, "There is no baseline yet, so nothing can be compared.", ()
    slo = {str(name): limit for name, limit in spec.slo.items()}
    chosen = choose(candidates, objective=spec.objective, bar=spec.quality, slo=slo, aa=aa.model_dump())
    return chosen.winner, chosen.decision, tuple(chosen.pareto)


def _budget(spec: RunSpec, events: Sequence[Event]) -> BudgetUse:
    """Time used; a session without an end counts up to its last sign of life."""
    session = _since_start(events)
    started = _last(session, "run_started") or {}
    finished = _last(session, "run_finished")
    times = [float(event["time"]) for event in session if event["event"] not in AFTER_RUNS]
    seconds = times[-1] - times[0] if times else 0.0
    spent = float(finished["spent_s"]) if finished else float(started.get("spent_s") or 0.0) + seconds
    phases: dict[str, float] = {}
    for event in events:
        if event["event"] == "phase":
            phases[event["name"]] = phases.get(event["name"], 0.0) + float(event["seconds"])
    return BudgetUse(total_s=float(started.get("budget_s", spec.budget)), spent_s=spent, phases=phases)


def _profile(content: Mapping[str, Any]) -> Profile | None:
    if not content:
        return None
    known = {name: content[name] for name in _PROFILE_KEYS if content.get(name) is not None}
    known["traces"] = {name: f"profile/{PurePath(path).name}" for name, path in known.get("traces", {}).items()}  # the folder may have moved
    return Profile(**known, details={name: value for name, value in content.items() if name not in _PROFILE_KEYS})


def _deployment(events: Sequence[Event]) -> Deployment | None:
    """The last deployment that was not taken down, nor taken back for what another run serves."""
    last: Event | None = None
    for place, event in enumerate(events):
        if event["event"] in ("deployed", "undeployed"):
            last = event if event["event"] == "deployed" else None
        elif event["event"] == "canary_ended" and last is not None and event.get("variant", last.get("variant")) != last.get("variant"):
            before = (one for one in reversed(events[:place]) if one["event"] == "deployed" and one.get("variant") == event["variant"])
            last = next(before, None)
    if last is None:
        return None
    return Deployment(
        url=last["url"], application=str(last.get("application") or ""), variant=str(last.get("variant") or ""),
        needs_key=bool(last.get("needs_key")),
    )  # fmt: skip
