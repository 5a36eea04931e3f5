"""The reports: written from the run folder alone, complete, escaped, and readable without a network."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from genopt.plan import Artifact, Candidate, Earlier, Metric, Prediction, Quality, Ratio, Step
from genopt.report import earlier
from genopt.report.assemble import assemble
from genopt.report.model import Report
from genopt.report.write import write_reports
from genopt.serving.exchange import Refusal
from genopt.serving.image_wire import ImagesRequest
from genopt.serving.wire import ChatRequest, parse
from genopt.spec import build, dump
from genopt.store.run_folder import RunFolder

ENVIRONMENT = {
    "environment": {"python": "3.11.2", "packages": {"torch": "2.13.0", "ray": "2.60.0"}, "git": None, "platform": "Linux"},
    "hardware": {"cpu": "Example CPU", "cores": 8, "memory_bytes": 32_000_000_000, "nodes": [{"cpus": 8, "gpus": 0}]},
}
MODEL = {
    "id": "smollm2-135m", "path": "/models/smollm2", "library": "transformers", "modality": "text", "task": "text-generation",
    "architecture": "LlamaForCausalLM", "revision": None, "digest": "d1" * 32, "parameters": 134_515_008, "bytes": 538_060_032,
    "dtype": "float32", "max_context": 8192, "note": "These weights come from a 4-bit grid.",
    "components": [], "denoiser": None,
}  # fmt: skip
PROFILE = {
    "bottlenecks": [
        {"name": "linear layers", "share": 0.71, "bound": "memory", "detail": "21 of 25 GB/s", "advice": "Store weights in 8 bits."},
        {"name": "framework", "share": 0.22, "bound": "overhead", "detail": "412 launches per token", "advice": "Compile, or use another engine."},
    ],
    "advice": "Decoding reads every weight once per token.", "ceilings": {"read_gb_s": 25.1, "matmul_gflop_s": 410.0}, "mbu": 0.37, "mfu": 0.04,
    "decode_ms": 42.0,
}  # fmt: skip


def metric(value: float, unit: str, spread: float = 0.02) -> Metric:
    low, high = value * (1 - spread), value * (1 + spread)
    return Metric(value=value, unit=unit, p50=value, p90=high, p99=high, ci_low=low, ci_high=high, n=8, conditions={"prompt_tokens": 64})


def ratio(value: float, spread: float = 0.02) -> Ratio:
    return Ratio(value=value, ci_low=value * (1 - spread), ci_high=value * (1 + spread))


def candidate(
    name: str, status: str, speed: float, quality: float, *, reason: str = "as measured", megabytes: int = 180, width: float = 0.002
) -> Candidate:
    """A measured candidate; `speed` is against the original, whose baseline is 1.6 times as fast."""
    verdict = {"accepted": "accept", "rejected": "reject"}.get(status, "inconclusive")
    return Candidate.model_validate({
        "name": name, "status": status, "reason": reason, "engine": "ort_genai",
        "steps": (Step(technique="onnx_genai", params={"precision": "int8", "keep": ["head"]}),),
        "artifact": Artifact(digest="ab" * 32, path="/store/ab", bytes=megabytes * 10**6, traits=("onnx_genai",), effective_bits=8.6),
        "metrics": {
            "decode_tok_s": metric(24 * speed, "tok/s"), "ttft_ms": metric(120 / speed, "ms"), "tpot_ms": metric(41 / speed, "ms"),
            "throughput_tok_s@1": metric(23 * speed, "tok/s"), "throughput_tok_s@4": metric(50 * speed, "tok/s"),
            "peak_memory_bytes": Metric(value=3.1e9 / speed, unit="bytes"), "load_s": Metric(value=2.1, unit="s"),
        },
        "quality": Quality(metric="likelihood", ratio=quality, ci_low=quality - width, ci_high=quality + width, n=16384, verdict=verdict),
        "speedup": {"vs_original": ratio(speed), "vs_baseline": ratio(speed / 1.6)},
    })  # fmt: skip


ORIGINAL = candidate("original", "accepted", 1.0, 1.0, megabytes=538).model_copy(update={"quality": None, "speedup": {"vs_original": ratio(1, 0)}})
BASELINE = candidate("baseline", "accepted", 1.6, 1.0, megabytes=538, width=0.0)
FOUND = (
    candidate("ort-int8-g32", "accepted", 4.1, 0.9962),
    candidate("ort-fp32", "accepted", 2.0, 1.0, megabytes=540),
    candidate("ort-int4-g32", "rejected", 6.2, 0.934, megabytes=110),
    candidate("ort-int8-g128", "rejected", 4.9, 0.9868),
    candidate("drop-2-layers", "inconclusive", 2.2, 0.9895),
    Candidate(name="too-big", status="infeasible", reason="needs 64 GB", engine="torch"),
    Candidate(name="late", status="skipped", reason="expected 90 s, 12 s were left", engine="torch"),
    Candidate(name="broken", status="failed", reason="its process died; see logs", engine="torch"),
)


def run_folder(
    path: Path, *, references: bool = True, found: tuple[Candidate, ...] = FOUND, finished: bool = True, slo: str = "", **model: Any
) -> RunFolder:
    """A run folder with the journal that a driver would have written."""
    spec = build({"model": "smollm2-135m", "budget": "10m", "slo": slo})
    run = RunFolder.create(path / "run", dump(spec), ENVIRONMENT)
    run.append("run_started", budget_s=600.0, cluster={"nodes": 1})
    run.append("model_resolved", model={**MODEL, **model})
    run.append("phase", name="profile", seconds=20.0)
    run.append("profile", profile=PROFILE)
    if references:
        aa = {"value": 1.001, "ci_low": 0.99, "ci_high": 1.012}
        facts = {"source": "help texts", "digest": "ev", "available_tokens": 65536, "looks": [2048, 8192]}
        run.append("references", original=ORIGINAL.model_dump(mode="json"), baseline=BASELINE.model_dump(mode="json"), aa=aa, evaluation=facts)
        for item in found:
            run.append("candidate_finished", candidate=item.model_dump(mode="json"), seconds=31.0)
    run.append("phase", name="measure", seconds=300.0)
    run.append("phase", name="measure", seconds=45.5)
    if finished:
        run.append("run_finished", spent_s=411.0, interrupted=False, reason="everything was tried")
    return run


class Page(HTMLParser):
    """Collects what a browser would see and load."""

    VOID = frozenset({"meta", "br", "img", "link", "path", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "data", "action"):
                (self.anchors if str(value).startswith("#") else self.loads).append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(run: RunFolder) -> Page:
    return Page((run.path / "report.html").read_text(encoding="utf-8"))


def steps(report: Report) -> str:
    return "\n".join(report.next_steps)


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


def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_reports(run)
    found = page(run)
    assert found.open == []
    assert found.loads == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "@import" not in found.text
    assert "url(http" not in found.text


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


def test_a_terminal_is_told_once_per_run_what_it_found(tmp_path: Path) -> None:
    when = 1_790_000_000.0
    looks = tuple(Earlier(what="quality", run="/runs/first", measured=when + minute * 60) for minute in (0, 5))
    found = tuple(candidate.model_copy(update={"earlier": looks}) for candidate in FOUND[:2])
    run = run_folder(tmp_path, found=(*found, *FOUND[2:]))
    with (run.path / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"time": when + 3 * 86_400, "event": "note"}) + "\n")
    names = ", ".join(candidate.name for candidate in found)
    assert earlier.lines(write_reports(run)) == [f"† quality of {names}: from the run first, 3 days old (unknown)"]


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
