"""The report: written from the run folder alone, complete, and what it says to do next."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from pathlib import Path

import pytest

from genopt.plan import Candidate, Earlier
from genopt.report import earlier
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.report.write import write_reports
from genopt.serving.exchange import Refusal
from genopt.serving.image_wire import ImagesRequest
from genopt.serving.wire import ChatRequest, parse
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder
from tests.unit.report_runs import BASELINE, FOUND, MODEL, ORIGINAL, candidate, metric, page, run_folder, steps


def test_the_report_names_the_winner_and_keeps_the_contract(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    written = write_reports(run)
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert Report.model_validate(report) == written
    assert report["schema_version"] == 1
    assert {"model", "hardware", "environment", "budget", "bottlenecks", "pareto", "decision", "next_steps"} <= report.keys()
    assert report["winner"] == "ort-int8-g32"
    assert report["winner"] in report["pareto"]
    assert [item["name"] for item in report["candidates"]] == ["original", "baseline", *(item.name for item in FOUND)]
    assert report["model"] == MODEL
    assert report["budget"] == {"total_s": 600.0, "spent_s": 411.0, "phases": {"profile": 20.0, "measure": 345.5}}
    assert report["hardware"]["cores"] == 8
    assert report["environment"]["packages"]["torch"] == "2.13.0"
    assert report["bottlenecks"][0]["bound"] == "memory"
    assert report["profile"]["ceilings"]["read_gb_s"] == 25.1
    assert report["profile"]["details"] == {"decode_ms": 42.0}
    assert report["aa"] == {"value": 1.001, "ci_low": 0.99, "ci_high": 1.012}
    assert report["interrupted"] is False
    assert report["deployment"] is None


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    names = ("report.json", "report.md", "report.html")
    write_reports(run)
    first = [(run.path / name).read_bytes() for name in names]
    write_reports(RunFolder.existing(run.path))
    assert [(run.path / name).read_bytes() for name in names] == first


def test_a_run_without_winner_keeps_the_baseline(tmp_path: Path) -> None:
    run = run_folder(tmp_path, found=FOUND[2:])
    report = write_reports(run)
    assert report.winner is None
    assert "baseline is kept" in page(run).text
    assert "genopt deploy" not in page(run).text
    assert "try `--quality 98.4%`" in steps(report)


@pytest.mark.parametrize(
    ("found", "slo", "why"),
    [
        (FOUND[:1], "ttft_p99=1ms", "1 of 1 candidates hold the quality bar of 0.99, but none meets ttft_p99; the baseline is kept."),
        (FOUND[4:5], "", "None of 1 candidates was shown to hold the quality bar of 0.99; the baseline is kept."),
        ((), "", "No candidate was tried; the baseline is kept."),
    ],
)
def test_a_run_without_winner_says_why_in_its_own_words_alone(found: tuple[Candidate, ...], slo: str, why: str, tmp_path: Path) -> None:
    run = run_folder(tmp_path, found=found, slo=slo)
    write_reports(run)
    head = (run.path / "report.md").read_text(encoding="utf-8").replace("\\", "").splitlines()
    assert [head[0], head[2]] == ["# The baseline is kept.", why]


def test_a_run_without_references_is_valid(tmp_path: Path) -> None:
    run = run_folder(tmp_path, references=False, finished=False)
    run.append("run_finished", spent_s=30.0, interrupted=True, reason="Ctrl-C")
    report = write_reports(run)
    assert report.candidates == ()
    assert report.winner is None
    assert "no baseline yet" in report.decision
    assert report.interrupted
    assert report.ended == "Ctrl-C"
    assert f"genopt resume {run.path}" in steps(report)
    assert "This run was interrupted" in page(run).text
    assert page(run).open == []


def test_a_run_that_never_found_its_model_is_valid(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", dump(build({"model": "nobody/nothing"})), {})
    report = write_reports(run)
    assert report.model.id == "nobody/nothing"
    assert report.interrupted
    assert page(run).open == []


def test_a_driver_that_died_counts_as_interrupted_and_its_time_as_spent(tmp_path: Path) -> None:
    run = run_folder(tmp_path, finished=False)
    lines = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    for second, line in enumerate(lines):
        line["time"] = 1_700_000_000.0 + 10 * second
    (run.path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for event in ("deployed", "canary_begun", "canary_ended", "undeployed"):  # years later
        run.append(event, url="http://127.0.0.1:8000")
    report = assemble(run)
    assert report.interrupted
    assert math.isclose(report.budget.spent_s, 10.0 * (len(lines) - 1))
    assert report.winner == "ort-int8-g32"


def test_a_resumed_run_counts_the_last_result_of_each_candidate(tmp_path: Path) -> None:
    run = run_folder(tmp_path, finished=False)
    run.append("run_finished", spent_s=300.0, interrupted=True, reason="Ctrl-C")
    run.append("run_started", budget_s=600.0, cluster={}, spent_s=300.0)
    run.append("candidate_finished", candidate=candidate("late", "accepted", 5.5, 0.997).model_dump(mode="json"), seconds=40.0)
    assert assemble(run).interrupted
    run.append("run_finished", spent_s=390.0, interrupted=False, reason="done")
    report = assemble(run)
    assert [item.name for item in report.candidates].count("late") == 1
    assert report.winner == "late"
    assert report.budget.spent_s == 390.0
    assert not report.interrupted


def test_a_deployment_shows_until_it_is_taken_down(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    run.append("deployed", url="http://127.0.0.1:8000/v1", application="genopt", variant="ort-int8-g32")
    report = write_reports(run)
    assert report.deployment is not None
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions -H" in page(run).text
    assert page(run).loads == []
    run.append("undeployed")
    assert assemble(run).deployment is None


def test_a_deployment_that_was_taken_back_is_what_answers_now(tmp_path: Path) -> None:
    run = run_folder(tmp_path)

    def serve(variant: str) -> None:
        run.append("deployed", url="http://127.0.0.1:8000", application="genopt", variant=variant, needs_key=False)

    def variant() -> str | None:
        found = assemble(run).deployment
        return found and found.variant

    serve("ort-int8-g32")
    run.append("canary_ended", reason="It failed too often.")
    assert variant() == "ort-int8-g32", "a canary that ends by itself changes nothing"
    serve("ort-fp32")
    run.append("canary_ended", reason="It was rolled back by hand.", variant="ort-int8-g32")
    assert variant() == "ort-int8-g32"
    run.append("canary_ended", reason="It was rolled back by hand.", variant="that of another run")
    assert variant() is None


@pytest.mark.parametrize("needs_key", [False, True])
@pytest.mark.parametrize(("modality", "kind"), [("text", ChatRequest), ("image", ImagesRequest)])
def test_the_report_shows_a_request_that_the_deployment_takes(
    modality: str, kind: type[ChatRequest | ImagesRequest], needs_key: bool, tmp_path: Path
) -> None:
    run = run_folder(tmp_path, modality=modality, id="/models/mine")
    evaluation = {"source": "its own", "example": "a lighthouse's lamp"}
    aa = {"value": 1.0, "ci_low": 0.99, "ci_high": 1.01}
    run.append("references", original=ORIGINAL.model_dump(mode="json"), baseline=BASELINE.model_dump(mode="json"), aa=aa, evaluation=evaluation)
    run.append("deployed", url="http://127.0.0.1:8000", application="genopt", variant="ort-int8-g32", needs_key=needs_key)
    write_reports(run)
    (line,) = re.findall(r"^curl .*$", (run.path / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    words = shlex.split(line)
    asked = parse(kind, words[words.index("-d") + 1].encode())
    assert not isinstance(asked, Refusal)
    assert asked.model == "mine"
    assert "a lighthouse's lamp" in asked.model_dump_json()
    assert ("Authorization: Bearer KEY" in words) == needs_key
    assert html.escape(line) in (run.path / "report.html").read_text(encoding="utf-8").replace("&#34;", "&quot;").replace("&#39;", "&#x27;")


@pytest.mark.parametrize(
    "advice",
    ["Deploy ort-int8-g32: `genopt deploy", "Decide drop-2-layers with more evaluation text", "Try late with a `--budget` above 600 s, or",
     "lower the bar: ort-int8-g128 is 3.06× as fast", "Look into broken", "Mind the weights: These weights come from a 4-bit grid."],
)  # fmt: skip
def test_next_steps_follow_from_what_was_found(advice: str, tmp_path: Path) -> None:
    assert advice in steps(assemble(run_folder(tmp_path)))


def test_a_noisy_machine_is_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    aa = {"value": 1.02, "ci_low": 0.9, "ci_high": 1.13}
    run.append("references", original=ORIGINAL.model_dump(mode="json"), baseline=BASELINE.model_dump(mode="json"), aa=aa, evaluation={})
    assert "Measure on a quiet machine" in steps(assemble(run))


def test_images_are_reported_by_their_own_metrics(tmp_path: Path) -> None:
    metrics = {"latency_ms": metric(850, "ms"), "step_ms": metric(40, "ms"), "images_per_s@2": metric(2.1, "images/s")}
    found = (candidate("fewer-steps", "accepted", 3.0, 0.995).model_copy(update={"metrics": metrics}),)
    run = run_folder(tmp_path, found=found, modality="image")
    run.append("deployed", url="http://127.0.0.1:8000", application="genopt", variant="fewer-steps")
    write_reports(run)
    text = page(run).text
    assert "fewer-steps makes images 3.00× as fast" in text
    assert "850 ms" in text
    assert "/v1/images/generations" in text


def test_a_terminal_is_told_once_per_run_what_it_found(tmp_path: Path) -> None:
    when = 1_790_000_000.0
    looks = tuple(Earlier(what="quality", run="/runs/first", measured=when + minute * 60) for minute in (0, 5))
    found = tuple(candidate.model_copy(update={"earlier": looks}) for candidate in FOUND[:2])
    run = run_folder(tmp_path, found=(*found, *FOUND[2:]))
    with (run.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"time": when + 3 * 86_400, "event": "note"}) + "\n")
    names = ", ".join(candidate.name for candidate in found)
    assert earlier.lines(write_reports(run)) == [f"† quality of {names}: from the run first, 3 days old (unknown)"]
