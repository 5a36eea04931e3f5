"""The report as a page and as Markdown: complete, escaped, and readable without a network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from genopt.plan import Candidate, Earlier, Prediction, Quality
from genopt.report import earlier, method, wording
from genopt.report.markdown import escape
from genopt.report.write import write_reports
from tests.unit.report_runs import FOUND, Page, candidate, metric, page, run_folder


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    found = page(run)
    assert found.open == []
    assert found.loads == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "@import" not in found.text
    assert "url(http" not in found.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("`code` *x*", r"`code` \*x\*"), ("`<b>not *closed*", r"\`\<b\>not \*closed\*"), ("a | `b|c`", r"a \| `b\|c`"), ("``", "``"), ("`", r"\`")],
)  # fmt: skip
def test_markdown_shows_text_as_it_is(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("number", "unit", "shown"),
    [(0.003, "images/s", "0.003 images/s"), (0.0, "images/s", "0.00 images/s"), (0.5, "ms", "0.50 ms"), (12.34, "ms", "12.3 ms"),
     (999.7e6, "bytes", "1000 MB"), (999.4e6, "bytes", "999 MB"), (1e9, "bytes", "1 GB")],
)  # fmt: skip
def test_small_and_large_numbers_are_told(number: float, unit: str, shown: str) -> None:
    assert wording.metric(metric(number, unit)) == shown


def test_the_plots_stand_in_the_page_with_ids_of_their_own(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    found = page(run)
    assert found.tags.count("svg") == 2
    assert len(found.ids) == len(set(found.ids))
    assert {anchor[1:] for anchor in found.anchors} <= set(found.ids)
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)
    assert "var(--winner)" in text
    assert not re.search(r"#0[abc]0\d0\d", text), "a placeholder colour was left"


def test_the_page_says_what_an_engineer_asks(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    text = " ".join(page(run).text.split())
    assert "ort-int8-g32 decodes 4.10× as fast as the original (95% interval 4.02–4.18) at 99.62% of its quality (lower bound 99.42%)." in text
    outcome = ("needs 64 GB", "Store weights in 8 bits.", "8.6", "50.0 tok/s", "A/A")
    repetition = ("d1" * 32, f"genopt deploy {run.path}", "budget: 600.0", "Example CPU, 8 cores, 32 GB")
    assert [phrase for phrase in (*outcome, *repetition) if phrase not in text] == []


def test_where_throughput_decides_it_is_told_first_and_orders_the_candidates(tmp_path: Path) -> None:
    """The one that is faster alone writes less with four at once."""
    alone = candidate("alone", "accepted", 5.0, 0.9962)
    metrics = {**alone.metrics, "throughput_tok_s@4": metric(60, "tok/s")}
    run = run_folder(tmp_path, found=(alone.model_copy(update={"metrics": metrics}), *FOUND[:2]), objective="throughput")
    report = write_reports(run)
    text = " ".join(page(run).text.split())
    assert (
        "ort-int8-g32 makes 4.10× as many tokens a second as the original with 4 at once and decodes 4.10× as fast as the original "
        "(95% interval 4.02–4.18) at 99.62% of its quality" in text
    )
    assert "4.10×the throughput of the original, 4 at onceoriginal: 50.0 tok/s" in text  # three elements
    assert [one.name for one in method.ordered(report)] == ["original", "baseline", "ort-int8-g32", "ort-fp32", "alone"]
    latency = report.model_copy(update={"objective": "latency"})
    assert [one.name for one in method.ordered(latency)][3:] == ["alone", "ort-fp32"]


def test_the_markdown_has_the_same_content(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    text = (run.path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# ort-int8-g32 decodes 4.10× as fast")
    headings = ["Next steps", "Candidates", "Throughput by load", "Where the original's time goes", "How it was measured", "How to reproduce it"]
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == headings
    assert "model: smollm2-135m" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script> | [a](http://evil) $\\frac{"
    run = run_folder(tmp_path, found=(candidate(hostile, "accepted", 4.1, 0.9962, reason=f"{hostile}\n# heading"),), id=hostile, note=hostile)
    write_reports(run)
    found = page(run)
    assert "script" not in found.tags
    assert found.loads == []
    assert found.open == []
    assert hostile in found.text
    markdown = (run.path / "report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert "<script>" not in outside_code.replace("\\<script\\>", "")
    assert not re.search(r"(?<!\\)\]\(", outside_code)
    assert "\n# heading" not in outside_code


def test_names_of_any_script_and_any_length_are_drawn(tmp_path: Path) -> None:
    names = ("模型-int8", "long-" * 30, "price $1$")
    run = run_folder(tmp_path, found=tuple(candidate(name, "accepted", 3 + index, 0.9962) for index, name in enumerate(names)))
    write_reports(run)
    drawing = re.search(r"<svg.*?</svg>", (run.path / "report.html").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert drawing is not None
    assert "模型-int8" in drawing[0]
    assert "price $1$" in drawing[0]


@pytest.mark.parametrize(("quality", "width"), [(0.0, 0.0), (0.3, 0.1), (1.4, 0.05), (1.0, 0.0)])
def test_extreme_qualities_can_be_drawn(quality: float, width: float, tmp_path: Path) -> None:
    run = run_folder(tmp_path, found=(candidate("extreme", "rejected", 0.02, quality, width=width),))
    write_reports(run)
    assert page(run).tags.count("svg") == 2
    assert "extreme" in page(run).text


def test_numbers_that_nobody_believes_stay_out_of_the_plot_and_readable(tmp_path: Path) -> None:
    absurd = Quality(metric="likelihood_ratio", ratio=0.0, ci_low=0.0, ci_high=math.exp(50), n=128, verdict="anomalous")
    found = candidate("absurd", "rejected", 9.0, 0.5).model_copy(update={"quality": absurd})
    run = run_folder(tmp_path, found=(found,))
    write_reports(run)
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "0.00–&gt;1000%" in text
    drawing = re.search(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert drawing is not None
    assert "absurd" not in drawing[0]


def test_many_candidates_make_one_page(tmp_path: Path) -> None:
    many = tuple(candidate(f"candidate-{number}", "accepted", 2 + number / 40, 0.995 + number / 10_000) for number in range(40))
    run = run_folder(tmp_path, found=many)
    write_reports(run)
    assert page(run).open == []
    assert (run.path / "report.html").stat().st_size < 400_000


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    """10 ms measured: predictions of 11 and 8 ms are off by 10 and 20 percent."""

    def predicted(name: str, value: float) -> Candidate:
        expected = Prediction(metric="tpot_ms", value=value, unit="ms", ci_low=0.9 * value, ci_high=1.1 * value, vs_baseline=2.5, seconds=30)
        return candidate(name, "accepted", 4.1, 0.9962).model_copy(update={"predicted": expected})

    run = run_folder(tmp_path, found=(predicted("high", 11.0), predicted("low", 8.0), FOUND[1]))
    write_reports(run)
    text, markdown = page(run).text, (run.path / "report.md").read_text(encoding="utf-8")
    for shown in (text, markdown):
        assert "Predicted and measured" in shown
        assert "over 2 candidates the predictions were off by 15%" in shown
        assert "+10%" in shown
        assert "-20%" in shown
    content = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert next(item for item in content["candidates"] if item["name"] == "high")["predicted"]["value"] == 11.0


def test_without_predictions_nothing_is_said_about_them(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    assert "Predicted and measured" not in page(run).text


def test_what_other_runs_found_is_marked_everywhere(tmp_path: Path) -> None:
    when = 1_790_000_000.0
    environment = {"cpu": "Example CPU", "threads": 2, "libraries": {"torch": "2.13.0"}}
    scored = Earlier(what="quality", run="/runs/first", measured=when, environment=environment)
    whole = Earlier(what="everything", run="/runs/<b>second", measured=when)
    found = (FOUND[0].model_copy(update={"earlier": (scored,)}), FOUND[1].model_copy(update={"earlier": (whole,)}), *FOUND[2:])
    run = run_folder(tmp_path, found=found)
    with (run.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"time": when + 3 * 86_400, "event": "note"}) + "\n")
    report = write_reports(run)
    row = ("ort-int8-g32", "quality", "first", "2026-09-21 14:13 UTC", "3 days", "Example CPU, 2 threads, torch 2.13.0")
    assert earlier.rows(report)[0] == row
    assert earlier.rows(report)[1][-2:] == ("3 days", "unknown")
    markdown = (run.path / "report.md").read_text(encoding="utf-8")
    page = Page((run.path / "report.html").read_text(encoding="utf-8"))
    for text in (markdown, page.text):
        assert "From earlier runs" in text
        assert "ort-int8-g32 †" in text
        assert "Example CPU, 2 threads, torch 2.13.0" in text
    assert "<b>second" in page.text
    document = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert document["candidates"][2]["earlier"][0]["run"] == "/runs/first"


def test_a_run_that_found_all_itself_speaks_of_no_other(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    assert "†" not in (run.path / "report.md").read_text(encoding="utf-8") + (run.path / "report.html").read_text(encoding="utf-8")
