"""What everything on the terminal shares: where it goes, how states look, and a line that moves."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

STYLES = {
    "accepted": "green", "rejected": "red", "failed": "red", "inconclusive": "yellow", "infeasible": "dim", "skipped": "dim",
    "running": "cyan", "reference": "blue", "winner": "bold green",
}  # fmt: skip
"""Rich style of a state; the word itself is always printed too."""
WIDTH = 132


def stderr() -> Console:
    """Standard error; a log file gets lines long enough for the tables."""
    found = Console(stderr=True)
    return found if found.is_terminal else Console(stderr=True, width=WIDTH)


def plain() -> Console:
    """Standard error as a log: lines instead of a table, even on a terminal."""
    return Console(stderr=True, force_terminal=False, width=WIDTH)


class MovingLine:
    """One line that moves on a terminal; elsewhere whoever uses it decides what is worth a line.

    Use it as a context manager; the line is gone when the block or `end` ends it.

    Args:
        console: Where to write; stderr unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or stderr()
        self._text = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Twice a second: drawing takes time from what is measured or generated meanwhile.
            self._live = Live(self, console=self._console, refresh_per_second=2, redirect_stdout=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """There is nothing more to show."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, text: str, *, lasting: str | None = None) -> None:
        """Changes the line.

        Args:
            text: What it says now.
            lasting: What is printed instead where nothing moves, such as in a log; None prints nothing there.
        """
        self._text = text
        if self._live is None and lasting is not None:
            self._console.print(lasting, markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        """The line as it stands."""
        return Text(self._text, no_wrap=True, overflow="ellipsis")
