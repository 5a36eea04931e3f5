"""What a run is doing, read from its folder by another process than the one that works on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from genopt.plan import Candidate, Record
from genopt.report.assemble import assemble
from genopt.report.model import REFERENCES, Deployment, Report
from genopt.store.lease import Holder
from genopt.store.run_folder import RunFolder

State = Literal["running", "finished", "interrupted", "dead"]
REMEDIES = {
    "running": "", "finished": "", "interrupted": "continue it with `genopt resume {run}`",
    "dead": "its driver died without a word; continue it with `genopt resume {run}`",
}  # fmt: skip


class Driver(Record):
    """The process that works on a run."""

    host: str
    pid: int


class Best(Record):
    """The candidate that would win if the run ended now.

    Attributes:
        name: The candidate.
        speedup: Times as fast as the original, or None where it was not measured.
        quality: Share of the original's quality.
    """

    name: str
    speedup: float | None
    quality: float | None


class RunStatus(Record):
    """A run as it stands.

    Attributes:
        run: Its folder.
        state: `running` while its driver lives; else how it ended. `dead`: the driver ended without recording why.
        phase: The phase that began last.
        driver: The living process that works on it, if one does.
        spent_s: Budget used so far, in seconds.
        total_s: Budget in seconds.
        candidates: How many there are by state, `running` included; the references are not counted.
        running: Names of those under way.
        best: The best accepted candidate so far; None where the baseline would be kept.
        decision: Why, in sentences.
        remedy: What to do, or an empty text.
        deployment: Where a variant is served, as the run recorded it.
        answers: Whether that deployment answers now; None where there is none.
    """

    run: str
    state: State
    phase: str
    driver: Driver | None
    spent_s: float
    total_s: float
    candidates: dict[str, int]
    running: tuple[str, ...]
    best: Best | None
    decision: str
    remedy: str
    deployment: Deployment | None
    answers: bool | None = None


def run_status(folder: RunFolder) -> RunStatus:
    """What a run is doing. Where its driver ran on another machine and died, telling so takes some seconds.

    Raises:
        RunFolderError: Its journal is damaged.
    """
    driver = folder.writer()
    report, events = assemble(folder), list(folder.events())
    state = _state(driver, report, events)
    session = _session(events)
    running = _running(session) if driver is not None else ()
    return RunStatus(
        run=str(folder.path), state=state, phase=_phase(session), driver=Driver(host=driver.host, pid=driver.pid) if driver else None,
        spent_s=_spent_s(report, session, driver), total_s=report.budget.total_s, candidates=_counts(report.tried, running), running=running,
        best=_best(report.winning), decision=report.decision, remedy=REMEDIES[state].format(run=folder.path), deployment=report.deployment,
    )  # fmt: skip


def _session(events: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The events of the last session."""
    starts = [place for place, event in enumerate(events) if event["event"] == "run_started"]
    return events[starts[-1] :] if starts else events


def _state(driver: Holder | None, report: Report, events: Sequence[dict[str, Any]]) -> State:
    if driver is not None:
        return "running"
    if not report.interrupted:
        return "finished"
    return "interrupted" if any(event["event"] == "run_finished" for event in _session(events)) else "dead"


def _phase(session: Sequence[dict[str, Any]]) -> str:
    names = [str(event["name"]) for event in session if event["event"] == "phase_started"]
    return names[-1] if names else "resolve"


def _running(session: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for event in session:
        if event["event"] == "candidate_started":
            found[str(event["name"])] = None
        elif event["event"] == "candidate_finished":
            found.pop(str(event["candidate"]["name"]), None)
    return tuple(found)


def _spent_s(report: Report, session: Sequence[dict[str, Any]], driver: Holder | None) -> float:
    """What the journal says, or up to now while the driver works."""
    if driver is None or not session:
        return report.budget.spent_s
    started = session[0]
    return float(started.get("spent_s") or 0.0) + max(0.0, time.time() - float(started["time"]))


def _counts(tried: Sequence[Candidate], running: Sequence[str]) -> dict[str, int]:
    found = Counter(candidate.status for candidate in tried if candidate.name not in (*REFERENCES, *running))
    counts: dict[str, int] = {str(status): count for status, count in sorted(found.items())}
    return counts | ({"running": len(running)} if running else {})


def _best(candidate: Candidate | None) -> Best | None:
    if candidate is None:
        return None
    speed = candidate.speedup.get("vs_original")
    return Best(name=candidate.name, speedup=speed.value if speed else None, quality=candidate.quality.ratio if candidate.quality else None)
