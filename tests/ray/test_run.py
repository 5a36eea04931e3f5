"""Whole runs on a real Ray: everything is real but the models behind the engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin

pytestmark = pytest.mark.ray
BUDGET = ("--budget", "150s", "--precision", "10%")
"""No run here needs half of it; what is measured differs by more than ten percent."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    write_fake_model(path / "model")
    write_plugin(path / "plugin")
    return path


def start(folder: Path, *arguments: str, within: Path | None = None) -> subprocess.Popen[str]:
    """`genopt` with the fake engine and task, in a process group of its own."""
    environment = {
        **os.environ, "PYTHONPATH": str(folder / "plugin"), "GENOPT_STORE": str(folder / "store"), "PYTHONWARNINGS": "default",
        "RAY_ADDRESS": "local",  # whatever else runs on this machine
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "genopt", *arguments], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, cwd=within or folder,
    )  # fmt: skip


def optimize(folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    return start(folder, "optimize", "model", "--task", "fake-text", *BUDGET, "--out", str(out), "--json", *more)


def ended(process: subprocess.Popen[str], code: int) -> Any:
    """The JSON document on stdout of a process that must end with a code; what does not end is killed, so that later tests find nothing of it."""
    try:
        out, err = process.communicate(timeout=180)  # more than the budget, which ends a run on the slowest machine
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"still at work after {process.communicate()[1]}") from None
    assert process.returncode == code, err
    assert "Traceback" not in err
    return json.loads(out)


def report_of(run: Path) -> Any:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


def events(run: Path, name: str) -> list[Any]:
    found = [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in found if event["event"] == name]


def wait_for_event(run: Path, name: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (run / "journal.jsonl").exists() and events(run, name):
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} did not happen")


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that work on the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("GENOPT_STORE") == str(folder / "store") and process.info["cmdline"]:
            found.append(" ".join(process.info["cmdline"])[:120])
    return found


def assert_nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + 15
    while left_over(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over(folder) == []


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, Any]:
    run = folder / "finished"
    return run, ended(optimize(folder, run), 0)


def test_every_candidate_ends_with_a_reason(finished: tuple[Path, Any]) -> None:
    _, report = finished
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    assert list(by_name)[:2] == ["original", "baseline"]
    statuses = {name: by_name[name]["status"] for name in ("twice-as-fast", "fast-but-wrong", "crashes", "needs-a-gpu")}
    assert statuses == {"twice-as-fast": "accepted", "fast-but-wrong": "rejected", "crashes": "failed", "needs-a-gpu": "infeasible"}
    assert all(candidate["reason"] for candidate in by_name.values())
    assert by_name["fast-but-wrong"]["quality"]["ci_high"] < 0.99


def test_the_search_finds_the_best_point(finished: tuple[Path, Any]) -> None:
    run, report = finished
    assert report["winner"] == "delay-1-loss-0.0"
    assert report["winner"] in report["pareto"]
    assert len([event for event in events(run, "candidate_finished") if event["candidate"]["name"].startswith("delay-")]) == 4


def test_speeds_are_those_of_the_engine(finished: tuple[Path, Any]) -> None:
    _, report = finished
    by_name = {candidate["name"]: candidate for candidate in report["candidates"]}
    low, high = (by_name["twice-as-fast"]["speedup"]["vs_baseline"][end] for end in ("ci_low", "ci_high"))
    assert low < 4.1 / 2.1 * 1.15  # other tests run beside this one
    assert high > 4.1 / 2.1 * 0.85
    assert by_name["baseline"]["speedup"]["vs_original"]["value"] == pytest.approx(2, rel=0.25)


def test_the_folder_is_whole(finished: tuple[Path, Any]) -> None:
    run, report = finished
    names = ("spec.yaml", "environment.json", "journal.jsonl", "records/candidates.parquet", "records/samples.parquet", "report.md", "report.html")
    assert [name for name in names if not (run / name).is_file()] == []
    assert report_of(run) == report
    assert report["budget"]["spent_s"] <= report["budget"]["total_s"]
    served = yaml.safe_load((run / "serve.yaml").read_text(encoding="utf-8"))
    assert served["applications"][0]["args"]["variant"]["name"] == report["winner"]
    assert not list((run / "data").glob(".*"))


def test_an_existing_folder_is_refused_and_a_finished_run_not_resumed(folder: Path, finished: tuple[Path, Any]) -> None:
    before = (finished[0] / "journal.jsonl").read_bytes()
    assert "already exists" in ended(optimize(folder, finished[0]), 2)["error"]["message"]
    assert "is finished" in ended(start(folder, "resume", str(finished[0]), "--json"), 2)["error"]["message"]
    assert (finished[0] / "journal.jsonl").read_bytes() == before


def test_without_a_winner_the_baseline_is_kept(folder: Path) -> None:
    run = folder / "none"
    document = ended(optimize(folder, run, "--include", "fast-but-wrong", "--max-trials", "0"), 3)
    assert report_of(run)["winner"] is None
    assert "baseline is kept" in report_of(run)["decision"]
    assert document["winner"] is None


def test_interrupted_and_resumed(folder: Path) -> None:
    run = folder / "interrupted"
    (folder / "questions.jsonl").write_text('{"prompt": "mine"}\n', encoding="utf-8")
    process = optimize(folder, run, "--max-trials", "0", "--prompts", "questions.jsonl")
    wait_for_event(run, "candidate_finished")
    os.killpg(process.pid, signal.SIGINT)
    message = ended(process, 130)["error"]["message"]
    assert "genopt resume" in message
    report = report_of(run)
    assert report["interrupted"]
    done = {one["name"] for one in report["candidates"] if one["status"] not in ("skipped", "failed")}
    assert {"original", "baseline"} <= done
    assert_nothing_is_left(folder)
    whole = ended(start(folder, "resume", str(run), "--json", within=folder / "plugin"), 0)
    assert not whole["interrupted"]
    assert whole["winner"] == "twice-as-fast"
    names = [event["candidate"]["name"] for event in events(run, "candidate_finished") if event["candidate"]["status"] == "accepted"]
    assert len(names) == len(set(names)), "what had ended was done again"


def test_interrupted_before_a_baseline(folder: Path) -> None:
    run = folder / "early"
    process = optimize(folder, run)
    wait_for_event(run, "model_resolved")
    process.send_signal(signal.SIGTERM)
    assert "no baseline yet" in ended(process, 130)["error"]["message"]
    assert report_of(run)["candidates"] == []
    assert_nothing_is_left(folder)


def test_requests_that_arrive_by_themselves_are_measured_with_ones_own_prompts_and_what_is_wrong_wins_where_nothing_is_asked(folder: Path) -> None:
    prompts = folder / "mine.jsonl"
    turns = [{"role": "user", "content": "Hi"}]
    prompts.write_text(json.dumps({"prompt": "short"}) + "\n" + json.dumps({"messages": turns}), encoding="utf-8")
    run = folder / "arrivals"
    load = ("--prompts", str(prompts), "--output-tokens", "8", "--concurrency", "1,4", "--arrivals", "poisson:20")
    report = ended(optimize(folder, run, "--include", "fast-but-wrong", "--quality", "off", "--max-trials", "0", *load), 0)
    assert report["winner"] == "fast-but-wrong"
    assert "Nothing was asked of its quality" in report["decision"]
    for candidate in report["candidates"]:
        found = {name: value for name, value in candidate["metrics"].items() if name.endswith("@poisson")}
        assert set(found) == {"ttft_ms@poisson", "tpot_ms@poisson", "e2el_ms@poisson", "output_tok_s@poisson"}
        assert {(value["conditions"]["rate"], value["conditions"]["output_tokens"]) for value in found.values()} == {(20.0, 8)}
        assert candidate["metrics"]["ttft_ms"]["conditions"]["longest_prompt_tokens"] == len("<|user|>Hi<|assistant|>") + 1
    busy = [candidate["metrics"]["ttft_ms@poisson"]["conditions"]["busy"] for candidate in report["candidates"]]
    assert busy[0] > busy[1] > busy[2]
    samples = pq.read_table(run / "records" / "samples.parquet").to_pylist()
    counted = report["candidates"][2]["metrics"]["ttft_ms@poisson"]["n"]
    assert sum(row["candidate"] == "fast-but-wrong" and row["phase"] == "arrivals" for row in samples) == counted
    assert "20.0 requests a second (poisson)" in (run / "report.html").read_text(encoding="utf-8")
