"""What a load test shows: its table, its progress and its plot."""

from __future__ import annotations

import io

import httpx
import pytest
from rich.console import Console

from genopt.console.load import LoadLine, print_load_test
from genopt.measure.load_plot import load_plot
from genopt.measure.load_result import LoadResult
from genopt.testing.virtual_server import (
    Server,
    run,
    stream,
    whole,
)


def printed(result: LoadResult) -> str:
    screen = io.StringIO()
    print_load_test(result, Console(file=screen, width=132))
    return screen.getvalue()


def test_the_table_has_every_level_and_what_each_time_means() -> None:
    shown = printed(run(Server(lambda request, number: stream()), concurrency=["1", "2"], slo="ttft=1s"))
    for words in (
        "first at http://server", "1 at once", "2 at once", "100.0%", "4 (1 at once), 4 (2 at once)", "TTFT: send to the first chunk",
        "TPOT: (E2EL - TTFT)/(n - 1)", "ITL: gap between two chunks", "E2EL: send to the last chunk", "goodput: requests that meet every limit",
    ):  # fmt: skip
        assert words in shown
    assert "the first of them said" not in shown


def test_the_table_has_errors_by_name_and_only_the_times_that_there_are() -> None:
    content = whole().content
    server = Server(lambda request, number: httpx.Response(503, text="busy") if number == 3 else [(0.5, content)])
    shown = printed(run(server, stream=False))
    for words in ("http_5xx", "503: busy", "E2EL", "answers in one piece"):
        assert words in shown
    for words in ("TTFT", "ITL", "goodput"):
        assert words not in shown


def test_a_level_that_was_not_kept_busy_is_noted() -> None:
    busy = run(Server(lambda request, number: stream()), concurrency=["2"], requests=10)
    assert not any("under way on average" in note for note in busy.notes)
    assert busy.levels[0].mean_in_flight == pytest.approx(2, rel=0.01)
    ragged = run(Server(lambda request, number: stream(first=5.0 if number == 4 else 0.1)), concurrency=["4"], requests=4)
    assert ragged.levels[0].mean_in_flight == pytest.approx((3 * 0.18 + 5.08) / 5.08, rel=0.01)
    assert any("4 at once: only 1.1 requests were under way on average" in note for note in ragged.notes)


def test_progress_is_one_line_per_level_in_a_log() -> None:
    screen = io.StringIO()
    with LoadLine(Console(file=screen, width=100)) as line:
        for done in range(3):
            line("8 at once", done=done, of=64, failed=0, in_flight=8)
        line("16 at once", done=0, of=None, failed=0, in_flight=0)
    assert screen.getvalue().splitlines() == ["8 at once", "16 at once"]


def test_progress_is_one_moving_line_on_a_terminal() -> None:
    screen = io.StringIO()
    with LoadLine(Console(file=screen, force_terminal=True, width=100, _environ={"TERM": "xterm-256color"})) as line:
        line("8 at once", done=3, of=64, failed=1, in_flight=8)
    assert "8 at once: 3 of 64 requests ended, 8 under way, 1 failed" in screen.getvalue()


def test_the_plot_is_the_same_for_the_same_result_and_shows_each_level() -> None:
    result = run(Server(lambda request, number: stream()), concurrency=["1", "2"])
    drawing = load_plot(result).decode()
    assert drawing == load_plot(result).decode()
    assert drawing.startswith("<?xml")
    for words in ("1 at once", "2 at once", "Output tokens per second", "p99"):
        assert words in drawing


def test_arrivals_that_were_not_answered_meanwhile_are_noted() -> None:
    swamped = run(Server(lambda request, number: stream(first=3.0 + number)), rate=[10.0], requests=20)
    assert any("10 per s: only 0." in note and "requests a second were answered" in note for note in swamped.notes)
    assert not any("were answered" in note for note in run(Server(lambda request, number: stream()), rate=[1.0], requests=50).notes)


def test_a_plot_without_tpot_says_so() -> None:
    assert "not measured" in load_plot(run(Server(lambda request, number: stream(chunks=1)))).decode()


def test_a_plot_of_whole_answers_has_their_latency_and_its_limit() -> None:
    answer = whole(usage={"completion_tokens": 7})
    drawing = load_plot(run(Server(lambda request, number: [(0.5, answer.content)]), stream=False, slo="e2el=1s")).decode()
    assert "End-to-end latency" in drawing
    assert "limit" in drawing
    assert "TTFT" not in drawing


def test_a_plot_can_be_a_bitmap() -> None:
    assert load_plot(run(Server(lambda request, number: stream())), ".PNG").startswith(b"\x89PNG")
