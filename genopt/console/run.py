"""A run on the terminal: while it works, when it is done, and what it would try."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genopt.console.terminal import STYLES, stderr
from genopt.plan import Candidate, Record
from genopt.report import earlier, wording
from genopt.report.model import REFERENCES, Report
from genopt.search.estimate import Forecast

ROWS = 18
"""Rows of the live table: more would push the budget off a small terminal. The summary has them all."""


class _Running(Record):
    """A candidate in the works; times on the listener's clock."""

    name: str
    since: float
    expected_s: float


class LiveTable:
    """A listener that keeps one table up to date on a terminal, and prints one plain line per event elsewhere.

    Use it as a context manager; the table stops, and stays on the screen, when the block ends.

    Args:
        console: Where to write; stderr unless given.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or stderr()
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._finished: dict[str, Candidate] = {}
        self._phase, self._activity = "starting", ""
        self._spent_s, self._total_s, self._heard = 0.0, 0.0, clock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self, console=self._console, refresh_per_second=4, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._running.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str, detail: str) -> None:
        """See `Listener.phase`."""
        self._phase, self._activity = f"{name}: {detail}" if detail else name, ""
        self._say(self._phase)

    def budget(self, spent_s: float, total_s: float) -> None:
        """See `Listener.budget`; between calls the bar moves on by itself."""
        self._spent_s, self._total_s, self._heard = spent_s, total_s, self._clock()

    def started(self, name: str, expected_s: float) -> None:
        """See `Listener.started`."""
        self._running[name] = _Running(name=name, since=self._clock(), expected_s=expected_s)
        self._say(f"{name}: started, about {wording.duration(expected_s)}")

    def activity(self, text: str) -> None:
        """See `Listener.activity`; what did not change is not said again."""
        if text != self._activity:
            self._activity = text
            if text:
                self._say(text)

    def finished(self, candidate: Candidate) -> None:
        """See `Listener.finished`."""
        self._running.pop(candidate.name, None)
        self._finished.pop(candidate.name, None)
        self._finished[candidate.name] = candidate
        self._say(f"{candidate.name}: {_state(candidate, None)}, {candidate.reason}")

    def _say(self, text: str) -> None:
        """One line where there is no table; control characters in names are dropped."""
        if self._live is None:
            line = "".join(character for character in " ".join(text.split()) if character.isprintable())
            self._console.print(f"[{wording.duration(self._elapsed_s())}] {line}", markup=False, highlight=False, soft_wrap=True)

    def _elapsed_s(self) -> float:
        return self._spent_s + self._clock() - self._heard

    def __rich__(self) -> RenderableType:
        """The table with the latest rows, the budget bar, and what happens now."""
        table = Table(box=None, pad_edge=False, header_style="bold dim")
        table.add_column("candidate", overflow="ellipsis", no_wrap=True, ratio=1)
        table.add_column("state", no_wrap=True)
        for heading in ("time", "speed", "tok/s", "quality"):
            table.add_column(heading, justify="right", no_wrap=True)
        rows = [*(_finished_row(candidate) for candidate in self._finished.values()), *(self._running_row(item) for item in self._running.values())]
        hidden = len(rows) - ROWS
        if hidden > 0:
            table.add_row(Text(f"… {hidden} more above", style="dim"))
        for row in rows[max(0, hidden) :]:
            table.add_row(*row)
        return Group(table, *self._status())

    def _running_row(self, item: _Running) -> tuple[Text, ...]:
        elapsed = self._clock() - item.since
        left = item.expected_s - elapsed
        remark = f"~{wording.duration(left)} left" if left > 0 else f"{wording.duration(elapsed)} so far"
        return Text(item.name), Text("running", style=STYLES["running"]), Text(remark), *(Text(wording.NONE, style="dim") for _ in range(3))

    def _status(self) -> list[RenderableType]:
        lines: list[RenderableType] = []
        if self._total_s > 0:
            spent = min(self._total_s, self._elapsed_s())
            bar = Table.grid(padding=(0, 1))
            of = f"{wording.duration(spent)} of {wording.duration(self._total_s)}"
            bar.add_row(Text("budget", style="dim"), ProgressBar(total=self._total_s, completed=spent, width=32), Text(of))
            lines += [Text(""), bar]
        activity = f" · {self._activity}" if self._activity else ""
        return [*lines, Text.assemble((self._phase, "bold"), (activity, "dim"), no_wrap=True, overflow="ellipsis")]


def print_summary(report: Report, console: Console | None = None) -> None:
    """Prints how a run ended: the verdict, all candidates, next steps and where the reports are.

    Args:
        report: The run's report.
        console: Where to write; stderr unless given.
    """
    out = console or stderr()
    out.print()
    out.print(Text(wording.verdict(report), style=STYLES["winner"] if report.winner else "bold"))
    out.print(Text(report.decision, style="dim"))
    if report.interrupted:
        out.print(Text(f"Interrupted: {report.ended}.", style=STYLES["inconclusive"]))
    if report.candidates:
        out.print()
        out.print(_summary_table(report))
        for line in earlier.lines(report):
            out.print(Text(line, style="dim"))
    for step in report.next_steps[:3]:
        out.print(Text(f"→ {step.replace('`', '')}"))
    out.print()
    paths = Table.grid(padding=(0, 2))
    for name, file in (("report", "report.html"), ("markdown", "report.md"), ("numbers", "report.json")):
        paths.add_row(Text(name, style="dim"), Text(f"{report.run}/{file}", overflow="fold"))
    out.print(paths)
    command = wording.curl(report)
    if command:
        out.print(Text(command), soft_wrap=True)


def _summary_table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    table.add_column("candidate", overflow="fold")
    table.add_column("state", no_wrap=True)
    streams = wording.deciding_streams(report)
    many = [f"at {streams}"] if streams > 1 else []
    for heading in ("vs original", "vs baseline", "tok/s" if report.model.modality == "text" else "latency", *many, "quality", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in report.candidates:
        state = _state(candidate, report.winner)
        cells = [earlier.name(candidate), state, *(wording.ratio(candidate.speedup.get(key)) for key in ("vs_original", "vs_baseline")),
                 _pace(candidate), *(wording.metric(candidate.rates.get(streams)) for _ in many), _quality(candidate),
                 wording.size(candidate.artifact.bytes) if candidate.artifact else wording.NONE]  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style=STYLES["winner"] if state == "winner" else None)
    return table


def _state(candidate: Candidate, winner: str | None) -> str:
    if candidate.name in REFERENCES:
        return "reference"
    return "winner" if candidate.name == winner else candidate.status


def _pace(candidate: Candidate) -> str:
    """Tokens per second, or an image's latency."""
    decode = candidate.metrics.get("decode_tok_s")
    return f"{decode.value:.1f}" if decode else wording.metric(candidate.metrics.get("latency_ms"))


def _quality(candidate: Candidate) -> str:
    return wording.quality_percent(candidate.quality.ratio) if candidate.quality else wording.NONE


def _finished_row(candidate: Candidate) -> tuple[Text, ...]:
    state = _state(candidate, None)
    cells = (wording.ratio(candidate.speedup.get("vs_original")), _pace(candidate), _quality(candidate))
    return Text(earlier.name(candidate)), Text(state, style=STYLES[state]), Text("done", style="dim"), *(Text(cell) for cell in cells)


def print_plan(rows: Sequence[Forecast], console: Console | None = None) -> None:
    """Prints what a run would try."""
    out = console or stderr()
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for heading in ("candidate", "engine", "techniques", "expected", "disk", "ruled out because"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        expected = wording.duration(row.expected_s) if row.expected_s is not None else wording.NONE
        disk = f"≤ {wording.size(row.disk_bytes)}" if row.disk_bytes else wording.NONE
        cells = (row.name, row.engine, ", ".join(row.techniques) or wording.NONE, expected, disk, row.reason)
        table.add_row(*map(Text, cells), style="dim" if row.reason else None)
    out.print(table)
    remark = "Expected times are guesses until the first candidates were measured; the search adds candidates until the budget ends."
    out.print(Text(remark, style="dim"))
