"""How a run tells what it is doing; the terminal's table and the events for machines are two listeners."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from genopt.plan import Candidate

BUDGET_EVERY_S = 5.0
"""Passing time is written as an event no more often than this."""


class Listener(Protocol):
    """Told what a run does, from the driver's thread."""

    def phase(self, name: str, detail: str) -> None:
        """A phase began or moved on."""

    def budget(self, spent_s: float, total_s: float) -> None:
        """Time passed."""

    def started(self, name: str, expected_s: float) -> None:
        """A candidate was submitted."""

    def activity(self, text: str) -> None:
        """What a bench is doing right now."""

    def finished(self, candidate: Candidate) -> None:
        """A candidate ended."""


class Silent:
    """A listener that ignores everything."""

    def phase(self, name: str, detail: str) -> None:
        """Ignored."""

    def budget(self, spent_s: float, total_s: float) -> None:
        """Ignored."""

    def started(self, name: str, expected_s: float) -> None:
        """Ignored."""

    def activity(self, text: str) -> None:
        """Ignored."""

    def finished(self, candidate: Candidate) -> None:
        """Ignored."""


class Broadcast:
    """Tells several listeners, in order.

    Args:
        listeners: Those who are told.
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def phase(self, name: str, detail: str) -> None:
        """See `Listener.phase`."""
        for listener in self._listeners:
            listener.phase(name, detail)

    def budget(self, spent_s: float, total_s: float) -> None:
        """See `Listener.budget`."""
        for listener in self._listeners:
            listener.budget(spent_s, total_s)

    def started(self, name: str, expected_s: float) -> None:
        """See `Listener.started`."""
        for listener in self._listeners:
            listener.started(name, expected_s)

    def activity(self, text: str) -> None:
        """See `Listener.activity`."""
        for listener in self._listeners:
            listener.activity(text)

    def finished(self, candidate: Candidate) -> None:
        """See `Listener.finished`."""
        for listener in self._listeners:
            listener.finished(candidate)


class JsonLines:
    """Writes every event as one JSON object on a line, with `time` (Unix seconds) and `event`, for machines.

    Events: `phase` (name, detail), `budget` (spent_s, total_s), `started` (name, expected_s), `activity` (text) and
    `finished` (candidate, as in report.json).

    Args:
        write: Receives each line.
        clock: Unix time in seconds.
    """

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.time) -> None:
        self._write, self._clock = write, clock
        self._activity = ""
        self._told_spent_s = -BUDGET_EVERY_S

    def event(self, event: str, /, **content: Any) -> None:
        """Writes one event."""
        self._write(json.dumps({"time": self._clock(), "event": event, **content}) + "\n")

    def phase(self, name: str, detail: str) -> None:
        """See `Listener.phase`."""
        self.event("phase", name=name, detail=detail)

    def budget(self, spent_s: float, total_s: float) -> None:
        """See `Listener.budget`; some of the calls are left out."""
        if spent_s - self._told_spent_s >= BUDGET_EVERY_S:
            self._told_spent_s = spent_s
            self.event("budget", spent_s=spent_s, total_s=total_s)

    def started(self, name: str, expected_s: float) -> None:
        """See `Listener.started`."""
        self.event("started", name=name, expected_s=expected_s)

    def activity(self, text: str) -> None:
        """See `Listener.activity`; what did not change is not said again."""
        if text and text != self._activity:
            self.event("activity", text=text)
        self._activity = text

    def finished(self, candidate: Candidate) -> None:
        """See `Listener.finished`."""
        self.event("finished", candidate=candidate.model_dump(mode="json"))
