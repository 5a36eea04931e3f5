"""A comparison by people on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genopt.console.terminal import MovingLine, stderr
from genopt.quality.preference import HumanResult
from genopt.report import wording

WIDEST = 48
"""Characters of what was said about a prompt, at most; the prompt is cut off instead."""


class AnswerLine(MovingLine):
    """A `genopt.compare.text_answers.AnswerProgress` on stderr: one line that moves on a terminal, a line now and then elsewhere."""

    def __call__(self, variant: str, *, done: int, of: int) -> None:
        """See `genopt.compare.text_answers.AnswerProgress`."""
        text = f"{variant} answers: {done} of {of}"
        self.show(text, lasting=text if done == of or done % 5 == 0 else None)


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
