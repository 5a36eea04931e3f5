"""What of a report other runs found: which numbers, which run, how long ago, with what."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any

from genopt.plan import Candidate, Earlier
from genopt.report.model import Report

MARK = "†"
HEADINGS = ("Candidate", "What", "Found by", "Measured", "Age", "With")
SENTENCE = (
    f"What is marked {MARK} was not found in this run. Quality was decided anew from scores that an earlier run kept of the same bytes, engine, "
    "libraries and text, after one piece of the text was scored again and came out alike; those of tasks are believed as they were kept. Speeds of "
    "earlier runs are shown and win nothing: who would win by them was measured again. `--fresh` finds every number anew."
)


def name(candidate: Candidate) -> str:
    """A candidate's name, marked where something of it comes from another run."""
    return f"{candidate.name} {MARK}" if candidate.earlier else candidate.name


def rows(report: Report) -> list[tuple[str, ...]]:
    """A row per candidate and run, in words; none where the run found everything itself."""
    until = datetime.fromisoformat(report.created)
    return [
        (who, one.what, PurePath(one.run).name, f"{_moment(one):%Y-%m-%d %H:%M} UTC", _age(one, until), _with(one.environment))
        for who, one in _found(report)
    ]  # fmt: skip


def lines(report: Report) -> list[str]:
    """The same for a terminal, a line for each run, with the age of the oldest."""
    until = datetime.fromisoformat(report.created)
    groups: dict[tuple[str, str, str], list[tuple[str, Earlier]]] = {}
    for who, one in _found(report):
        groups.setdefault((one.what, one.run, _with(one.environment)), []).append((who, one))
    said = []
    for (what, run, facts), found in groups.items():
        oldest = min((one for _, one in found), key=lambda one: one.measured)
        said.append(f"{MARK} {what} of {', '.join(who for who, _ in found)}: from the run {PurePath(run).name}, {_age(oldest, until)} old ({facts})")
    return said


def _found(report: Report) -> list[tuple[str, Earlier]]:
    """By candidate, what another run found of it, once; what it found twice as of the first time."""
    known: dict[tuple[str, str, str], tuple[str, Earlier]] = {}
    for candidate in report.candidates:
        for one in candidate.earlier:
            known.setdefault((candidate.name, one.what, one.run), (candidate.name, one))
    return list(known.values())


def _moment(one: Earlier) -> datetime:
    return datetime.fromtimestamp(one.measured, UTC)


def _age(one: Earlier, until: datetime) -> str:
    seconds = max(0.0, (until - _moment(one)).total_seconds())
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _with(environment: Mapping[str, Any]) -> str:
    """The processor, its threads, and the libraries."""
    libraries = [f"{library} {version}" for library, version in dict(environment.get("libraries") or {}).items()]
    machine = [str(environment["cpu"])] if environment.get("cpu") else []
    machine += [f"{environment['threads']} threads"] if environment.get("threads") else []
    return ", ".join([*machine, *libraries]) or "unknown"
