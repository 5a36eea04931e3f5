"""The quickstart as a newcomer runs it: the real model, the real engines, a real deployment, a short budget."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import genopt
from genopt.report.model import Report

pytestmark = [pytest.mark.e2e, pytest.mark.alone]
Quickstart = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def report(quickstart: Quickstart) -> Any:
    return json.loads((quickstart[0] / "report.json").read_text(encoding="utf-8"))


def test_it_ends_with_an_answer_and_says_how_to_go_on(quickstart: Quickstart) -> None:
    run, done = quickstart
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"^answer +\S+ \S+", done.stdout, re.MULTILINE)
    assert re.search(r"^try it +curl -s http://127\.0\.0\.1:\d+/v1/chat/completions", done.stderr, re.MULTILINE)
    assert str(run / "report.html") in done.stderr
    assert "vs original" in done.stderr


def test_the_winner_is_a_judged_and_measured_candidate_on_the_front(report: Any) -> None:
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    assert list(by_name)[:2] == ["original", "baseline"]
    winner = by_name[report["winner"]]
    assert winner["status"] == "accepted"
    assert winner["quality"]["ci_low"] >= 0.99
    assert winner["quality"]["n"] >= 2000
    assert report["winner"] in report["pareto"]
    for name in ("vs_original", "vs_baseline"):
        speedup = winner["speedup"][name]
        assert 1 < speedup["ci_low"] <= speedup["value"] <= speedup["ci_high"]
    assert {"ttft_ms", "tpot_ms", "decode_tok_s", "throughput_tok_s@1", "throughput_tok_s@4", "peak_memory_bytes", "load_s"} <= set(winner["metrics"])
    assert winner["artifact"]["bytes"] > 0
    assert 4 < winner["artifact"]["effective_bits"] < 33


def test_every_candidate_says_why_it_ended_so(report: Any) -> None:
    assert all(candidate["reason"] for candidate in report["candidates"])
    assert not [candidate for candidate in report["candidates"] if candidate["status"] == "failed"]
    rejected = [candidate for candidate in report["candidates"] if candidate["status"] == "rejected"]
    assert all(candidate["quality"]["ci_high"] < 0.99 for candidate in rejected)


def test_the_budget_holds_and_the_profile_names_what_binds(report: Any) -> None:
    assert report["budget"]["total_s"] == 560, "what is left of ten minutes is for the answer"
    assert report["budget"]["spent_s"] <= 1.02 * report["budget"]["total_s"] + 5
    assert sum(part["share"] for part in report["bottlenecks"]) == pytest.approx(1, abs=0.01)
    assert all(part["advice"] for part in report["bottlenecks"])
    assert report["hardware"]["cores"] >= 1
    assert report["environment"]["packages"]["torch"]


def test_the_folder_is_what_the_contract_says(quickstart: Quickstart, report: Any) -> None:
    run, _ = quickstart
    names = ("spec.yaml", "environment.json", "journal.jsonl", "report.md", "records/candidates.parquet", "records/samples.parquet")
    assert [name for name in names if not (run / name).is_file()] == []
    assert list((run / "profile").glob("*.json*"))
    assert list((run / "logs").glob("*.log"))
    ServeDeploySchema.model_validate(yaml.safe_load((run / "serve.yaml").read_text(encoding="utf-8")))
    loaded = genopt.load_run(run)
    assert loaded.report.candidates == Report.model_validate(report).candidates
    assert loaded.winner is not None
    assert loaded.winner.name == report["winner"]
    assert loaded.records("samples").num_rows > 20


class References(HTMLParser):
    """Collects whatever a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "poster") or (name == "href" and tag in ("link", "image", "use")):
                self.found.append(str(value))


def test_the_page_needs_no_network(quickstart: Quickstart, report: Any) -> None:
    text = (quickstart[0] / "report.html").read_text(encoding="utf-8")
    references = References()
    references.feed(text)
    assert [value for value in references.found if not value.startswith(("data:", "#"))] == []
    assert "@import" not in text
    assert all(candidate["name"] in text for candidate in report["candidates"])
    assert "<svg" in text


def test_nothing_is_left_running(quickstart: Quickstart, real_store: Path, left_over: Callable[[Path], list[str]]) -> None:
    assert left_over(real_store) == []
    assert not list((real_store / "building").glob("*"))
