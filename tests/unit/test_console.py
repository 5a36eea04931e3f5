"""The terminal: a table for people, plain lines for logs, and nothing on stdout."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from genopt.console.run import LiveTable, print_summary
from genopt.plan import Artifact, Candidate, Metric, Quality, Ratio
from genopt.progress import Listener
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen(*, terminal: bool, width: int = 110) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    kind = "truecolor" if terminal else None
    return Console(file=stream, force_terminal=terminal, width=width, height=40, color_system=kind, _environ={"TERM": "xterm-256color"}), stream


def candidate(name: str, status: str = "accepted", speed: float = 4.1) -> Candidate:
    interval = Ratio(value=speed, ci_low=speed * 0.98, ci_high=speed * 1.02)
    against_baseline = Ratio(value=speed / 1.6, ci_low=speed / 1.64, ci_high=speed / 1.56)
    return Candidate.model_validate({
        "name": name, "status": status, "reason": "as measured", "engine": "ort_genai",
        "artifact": Artifact(digest="ab", path="/store/ab", bytes=180_000_000),
        "metrics": {"decode_tok_s": Metric(value=24 * speed, unit="tok/s"), "peak_memory_bytes": Metric(value=1e9 / speed, unit="bytes")},
        "quality": Quality(metric="likelihood", ratio=0.9962, ci_low=0.9941, ci_high=0.998, n=8192, verdict="accept"),
        "speedup": {"vs_original": interval, "vs_baseline": against_baseline},
    })  # fmt: skip


def report(tmp_path: Path, *found: Candidate, references: bool = True, interrupted: bool = False, objective: str = "latency") -> Report:
    run = RunFolder.create(tmp_path / "run", dump(build({"model": "smollm2-135m", "objective": objective})), {})
    run.append("run_started", budget_s=600.0, cluster={})
    run.append("model_resolved", model={"id": "smollm2-135m", "modality": "text"})
    if references:
        first, second = candidate("original", speed=1.0), candidate("baseline", speed=1.6)
        aa = {"value": 1.0, "ci_low": 0.99, "ci_high": 1.01}
        run.append("references", original=first.model_dump(mode="json"), baseline=second.model_dump(mode="json"), aa=aa, evaluation={})
    for item in found:
        run.append("candidate_finished", candidate=item.model_dump(mode="json"), seconds=1.0)
    run.append("run_finished", spent_s=60.0, interrupted=interrupted, reason="Ctrl-C" if interrupted else "done")
    return assemble(run)


def drive(listener: Listener) -> None:
    """What a run tells its listener."""
    listener.budget(3.0, 600.0)
    listener.phase("references", "original and baseline")
    listener.finished(candidate("original", speed=1.0))
    listener.started("ort-int8", 40.0)
    listener.activity("ort-int8: auditing")
    listener.activity("ort-int8: auditing")
    listener.finished(candidate("ort-int8"))


def test_a_log_gets_one_plain_line_per_event() -> None:
    console, stream = screen(terminal=False)
    with LiveTable(console, Clock()) as table:
        drive(table)
    assert stream.getvalue().splitlines() == [
        "[3.00 s] references: original and baseline",
        "[3.00 s] original: reference, as measured",
        "[3.00 s] ort-int8: started, about 40.0 s",
        "[3.00 s] ort-int8: auditing",
        "[3.00 s] ort-int8: accepted, as measured",
    ]


def test_a_log_gets_no_control_characters_and_no_markup() -> None:
    console, stream = screen(terminal=False, width=30)
    with LiveTable(console, Clock()) as table:
        table.started("evil\x1b[31m[bold]name\r\n" + "long " * 20, 1.0)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    assert "[bold]name" in stream.getvalue()


def test_a_terminal_gets_a_table_with_what_is_done_and_what_runs() -> None:
    console, stream = screen(terminal=True)
    clock = Clock()
    with LiveTable(console, clock) as table:
        drive(table)
        table.started("ort-int4", 40.0)
        clock.now += 10
        table.activity("ort-int4: timing against the baseline")
        lines = rendered(table, console)
    shown = "\n".join(lines)
    row = next(line for line in lines if line.startswith("ort-int8"))
    assert row.split() == ["ort-int8", "accepted", "done", "4.10×", "98.4", "99.62%"]
    assert "~30.0 s left" in next(line for line in lines if line.startswith("ort-int4"))
    assert "13.0 s of 10 min 00 s" in shown
    assert "references: original and baseline · ort-int4: timing against the baseline" in shown
    assert "\x1b" in stream.getvalue()


def test_a_terminal_shows_the_latest_rows_of_many() -> None:
    console, _ = screen(terminal=True)
    with LiveTable(console, Clock()) as table:
        for number in range(50):
            table.finished(candidate(f"candidate-{number}"))
        lines = rendered(table, console)
    assert any("32 more above" in line for line in lines)
    assert any(line.startswith("candidate-49") for line in lines)
    assert not any(line.startswith("candidate-31 ") for line in lines)


def test_an_overdue_candidate_shows_its_age() -> None:
    console, _ = screen(terminal=True)
    clock = Clock()
    with LiveTable(console, clock) as table:
        table.started("slow", 5.0)
        clock.now += 12
        assert any("12.0 s so far" in line for line in rendered(table, console))


def test_the_table_stays_with_its_results_after_an_error() -> None:
    console, stream = screen(terminal=True)

    def interrupted() -> None:
        with LiveTable(console, Clock()) as table:
            drive(table)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "ort-int8" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def rendered(table: LiveTable, console: Console) -> list[str]:
    """The table as text."""
    return ["".join(segment.text for segment in line).rstrip() for line in console.render_lines(table)]


def test_the_summary_says_who_won_and_where_the_reports_are(tmp_path: Path) -> None:
    console, stream = screen(terminal=False, width=140)
    print_summary(report(tmp_path, candidate("ort-int8"), candidate("ort-int4", "rejected", 6.0)), console)
    text = stream.getvalue()
    assert "ort-int8 decodes 4.10× as fast as the original" in text
    for file in ("report.html", "report.md", "report.json"):
        assert f"{tmp_path}/run/{file}" in text.replace("\n", "")
    row = next(line for line in text.splitlines() if line.startswith("ort-int8 ") and "winner" in line)
    assert row.split()[:4] == ["ort-int8", "winner", "4.10×", "2.56×"]
    assert "→ Deploy ort-int8: genopt deploy" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("objective", "shown"), [("latency", False), ("throughput", True)])
def test_the_summary_shows_the_throughput_that_decided(tmp_path: Path, objective: str, shown: bool) -> None:
    console, stream = screen(terminal=False, width=140)
    busy = candidate("ort-int8")
    busy = busy.model_copy(update={"metrics": {**busy.metrics, "throughput_tok_s@8": Metric(value=289.0, unit="tok/s", ci_low=280.0, ci_high=300.0)}})
    print_summary(report(tmp_path, busy, objective=objective), console)
    assert ("at 8" in stream.getvalue()) is shown
    assert ("289 tok/s" in stream.getvalue()) is shown


def test_the_summary_of_a_run_without_baseline(tmp_path: Path) -> None:
    console, stream = screen(terminal=False)
    print_summary(report(tmp_path, references=False, interrupted=True), console)
    assert "ended before there was a baseline" in stream.getvalue()
    assert "Interrupted: Ctrl-C." in stream.getvalue()


def test_nothing_reaches_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable() as table:
        drive(table)
    print_summary(report(tmp_path, candidate("ort-int8")))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "ort-int8" in captured.err
