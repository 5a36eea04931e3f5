"""How a run tells what it is doing; the terminal's table and the tests' recorder are two listeners."""

from __future__ import annotations

from typing import Protocol

from genopt.plan import Candidate


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
