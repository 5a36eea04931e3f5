"""A run with questions of the user's own: who would win is asked, and the report says what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    write_fake_model(path / "model")
    write_plugin(path / "plugin")
    return path


def optimize(folder: Path, questions: list[dict[str, Any]], *more: str) -> tuple[int, Any]:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "plugin"), os.environ.get("PYTHONPATH", "")]),
        "GENOPT_STORE": str(folder / "store"), "RAY_ADDRESS": "local",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "genopt", "optimize", str(folder / "model"), "--task", "fake-text", "--budget", "150s", "--precision", "10%",
         "--max-trials", "0", "--json", "--eval-data", str(path), "--include", "twice-as-fast", *more],
        env=environment, text=True, capture_output=True, cwd=folder, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_winner_was_asked(folder: Path) -> None:
    questions = [{"prompt": f"Question {number}?", "answer": "abc" if number % 4 else "xyz"} for number in range(40)]
    code, report = optimize(folder, questions, "--out", str(folder / "run"))
    assert code == 0
    (winner,) = [one for one in report["candidates"] if one["name"] == report["winner"]]
    result = winner["quality"]["details"]["tasks"]["questions.jsonl"]
    assert (result["original"], result["candidate"], result["n"], result["lost"], result["gained"]) == (0.75, 0.75, 40, 0, 0)
    assert result["verdict"] == "inconclusive", "forty answers do not tell a percent"
    assert "it takes about" in winner["reason"]
    assert "questions.jsonl" in (folder / "run" / "report.html").read_text(encoding="utf-8")


def test_questions_that_cannot_be_marked_are_refused_at_once(folder: Path) -> None:
    code, document = optimize(folder, [{"prompt": "What?"}] * 20, "--out", str(folder / "refused"))
    assert code == 2
    assert "Line 1 of" in document["error"]["message"]
    assert not (folder / "refused").exists()
