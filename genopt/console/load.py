"""A load test on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from genopt.console.terminal import STYLES, MovingLine, stderr
from genopt.measure.load_result import Level, LoadResult
from genopt.report import wording

_TIMES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2el_ms": "E2EL"}


class LoadLine(MovingLine):
    """A `genopt.measure.load_test.Progress` on stderr: one line that moves on a terminal, one line per level elsewhere."""

    _level = ""

    def __call__(self, level: str, *, done: int, of: int | None, failed: int, in_flight: int) -> None:
        """See `genopt.measure.load_test.Progress`."""
        total = f" of {of}" if of is not None else ""
        begins, self._level = level != self._level, level
        self.show(f"{level}: {done}{total} requests ended, {in_flight} under way, {failed} failed", lasting=level if begins else None)


def print_load_test(result: LoadResult, console: Console | None = None) -> None:
    """Prints what a load test found: a row per level, a row per level and time, errors by name, definitions, and notes."""
    out = console or stderr()
    out.print()
    lengths = f"at most {result.spec.max_tokens} new tokens a request, answers {'streamed' if result.spec.stream else 'in one piece'}"
    out.print(Text.assemble((f"{result.model} at {result.spec.url}", "bold"), (f"  {lengths}", "dim")))
    if result.interrupted:
        out.print(Text("Interrupted: levels are missing.", style=STYLES["inconclusive"]))
    out.print()
    out.print(_levels_table(result.levels))
    out.print()
    out.print(_times_table(result.levels))
    if any(level.errors for level in result.levels):
        out.print()
        out.print(_errors_table(result.levels))
    measured = {name for level in result.levels for name in (*level.metrics, *(["goodput"] if level.goodput else []))}
    out.print()
    for name, title in {**_TIMES, "output_tok_s": "tok/s", "goodput": "goodput"}.items():
        if name in measured:
            out.print(Text(f"{title}: {result.definitions[name]}.", style="dim"))
    for note in result.notes:
        out.print(Text(f"! {note}", style=STYLES["inconclusive"]))


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _levels_table(levels: Sequence[Level]) -> Table:
    table = _table(["load"], ["answered", "failed", "tok/s", "requests/s", "in flight", "client CPU", *(["goodput"] if levels[0].goodput else [])])
    for level in levels:
        speeds = (f"{level.metrics[name].value:.{digits}f}" if name in level.metrics else wording.NONE
                  for name, digits in (("output_tok_s", 1), ("requests_s", 2)))  # fmt: skip
        cpu = wording.percent(level.client.cpu_share, 0) if level.client.cpu_share is not None else wording.NONE
        flying = f"{level.mean_in_flight:.1f}" if level.mean_in_flight is not None else wording.NONE
        cells = [level.name, str(level.succeeded), str(level.sent - level.succeeded), *speeds, flying, cpu]
        if level.goodput:
            pace = f", {level.goodput.requests_s:.2f}/s" if level.goodput.requests_s is not None else ""
            cells.append(f"{wording.percent(level.goodput.share)}{pace}")
        table.add_row(*map(Text, cells), style=STYLES["failed"] if level.errors else None)
    return table


def _times_table(levels: Sequence[Level]) -> Table:
    table = _table(["load", "time"], ["p50", "its 95% interval", "p90", "p99", "n"])
    for level in levels:
        name = level.name
        for key, title in _TIMES.items():
            value = level.metrics.get(key)
            if value is not None:
                tail = (wording.quantile(value, number) for number in (value.p90, value.p99))
                table.add_row(*map(Text, (name, title, wording.metric(value), wording.metric_interval(value), *tail, str(value.n))))
                name = ""
    return table


def _errors_table(levels: Sequence[Level]) -> Table:
    table = _table(["load", "error"], ["count"])
    table.add_column("the first of them said", overflow="fold")
    for level in levels:
        for place, (error, count) in enumerate(level.errors.items()):
            table.add_row(*map(Text, ("" if place else level.name, error, str(count), level.examples[error])))
    return table
