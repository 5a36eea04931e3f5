"""What the terminal shows of a comparison by people; all of it on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from genopt.console import stderr
from genopt.quality.preference import HumanResult
from genopt.report import wording

WIDEST = 48
"""Characters of what was said about a prompt, at most; the prompt is cut off instead."""


class AnswerLine:
    """A `genopt.compare.text_answers.AnswerProgress` on stderr: one line that moves on a terminal, a line now and then elsewhere.

    Use it as a context manager; the moving line is gone when the block or `end` ends it.

    Args:
        console: Where to write; stderr unless given.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or stderr()
        self._text = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Twice a second: drawing takes time from the engine that answers.
            self._live = Live(self, console=self._console, refresh_per_second=2, redirect_stdout=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """All answers are there."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, variant: str, *, done: int, of: int) -> None:
        """See `genopt.compare.text_answers.AnswerProgress`."""
        self._text = f"{variant} answers: {done} of {of}"
        if self._live is None and (done in (0, of) or done % 5 == 0):
            self._console.print(self._text, markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> RenderableType:
        """The line as it stands."""
        return Text(self._text, no_wrap=True, overflow="ellipsis")


def print_preference(result: HumanResult, console: Console | None = None) -> None:
    """Prints what people preferred: in words, by rater, and prompt by prompt."""
    out = console or stderr()
    out.print()
    out.print(Text(f"{result.a} against {result.b}", style="bold"))
    out.print(Text(result.decision))
    for note in result.notes:
        out.print(Text(note, style="dim"))
    out.print()
    out.print(_raters(result))
    out.print()
    out.print(_prompts(result, out.width))


def _raters(result: HumanResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    table.add_column("rater", no_wrap=True)
    for heading in ("votes", result.a, result.b, "tie", "both bad"):
        table.add_column(Text(heading), justify="right", overflow="fold")
    for rater in result.raters:
        counts = (rater.a, rater.b, rater.tie, rater.bad)
        table.add_row(Text(rater.rater), *map(Text, (f"{rater.votes} of {result.prompts}", *map(str, counts))))
    return table


def _prompts(result: HumanResult, width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    said = [wording.preferred(result, item) for item in result.details]
    widest = min(WIDEST, max(map(len, said)))
    table.add_column("preferred", overflow="fold", width=max(widest, len("preferred")))
    table.add_column("prompt", no_wrap=True)
    for words, item in zip(said, result.details, strict=True):
        prompt = Text("".join(letter for letter in " ".join(item.prompt.split()) if letter.isprintable()))
        prompt.truncate(max(8, width - widest - 4), overflow="ellipsis")
        table.add_row(Text(words), prompt)
    return table
