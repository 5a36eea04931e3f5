"""What benches do where something fails: the baseline gives way, a candidate ends with a reason, and nobody doubts the node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genopt import clock
from genopt.errors import OutOfMemoryError, StageError, StageTimeoutError
from genopt.plan import Artifact, Candidate, Plan
from genopt.process import SessionProcess
from genopt.tasks.attempts import Rows, attempt, open_references, unforeseen
from genopt.tasks.base import BenchConfig
from genopt.tasks.sessions import RoleSessions
from genopt.testing.fake_task import write_fake_model
from genopt.testing.plugin import write_plugin

ORIGINAL = Plan(name="original", steps=(), engine="fake")


def plan(name: str, **options: bool) -> Plan:
    return Plan(name=name, steps=(), engine="fake", options=options)


@pytest.fixture
def config(tmp_path: Path) -> BenchConfig:
    write_plugin(tmp_path / "plugins")
    write_fake_model(tmp_path / "model")
    return BenchConfig(
        original=str(tmp_path / "model"), artifact=Artifact(digest="d", path=str(tmp_path / "model"), bytes=1), data="", logs=str(tmp_path),
        quality=0.0, concurrency=(1,), output_tokens=8, threads=1, parameters=1, seed=0,
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path / "plugins"), str(Path(__file__).parents[2])])},
    )  # fmt: skip


@pytest.fixture
def sessions(config: BenchConfig) -> Iterator[RoleSessions[SessionProcess]]:
    found = RoleSessions(config, SessionProcess)
    yield found
    found.close()


@pytest.mark.parametrize(("options", "reason"), [({"needs_gpu": True}, "GPU"), ({"broken": True}, "cannot compile")])
def test_the_original_takes_the_place_of_a_baseline_that_cannot_run(
    config: BenchConfig, sessions: RoleSessions[SessionProcess], options: dict[str, bool], reason: str
) -> None:
    plans = (ORIGINAL, plan("baseline", **options))
    found = open_references(sessions, plans, Path(config.original), clock.now() + 60, lambda _: None, note="compiled")
    assert found.plan == ORIGINAL.model_copy(update={"name": "baseline"})
    assert reason in found.note
    assert sessions["baseline"].alive


def test_an_original_that_cannot_run_ends_the_run(config: BenchConfig, sessions: RoleSessions[SessionProcess]) -> None:
    with pytest.raises(StageError, match="cannot compile"):
        open_references(
            sessions, (plan("original", broken=True), ORIGINAL), Path(config.original), clock.now() + 60, lambda _: None, note=""
        )  # fmt: skip


def test_an_error_that_nobody_foresaw_is_the_candidate_s_own(config: BenchConfig, sessions: RoleSessions[SessionProcess]) -> None:
    def measure(_artifact: Artifact, _session: SessionProcess) -> tuple[Candidate, Rows]:
        raise ZeroDivisionError("no tokens")

    found = attempt(config, sessions, plan("odd"), config.artifact, clock.now() + 60, lambda _: None, measure)
    assert (found.candidate.status, found.again) == ("failed", "no")
    assert "ZeroDivisionError: no tokens" in found.candidate.reason
    log = Path(config.logs, "odd.error.log")
    assert str(log) in found.candidate.reason
    assert "in measure" in log.read_text(encoding="utf-8")


def test_errors_of_ours_stay_as_they_are_and_others_keep_what_kind_they_are(tmp_path: Path) -> None:
    late = StageTimeoutError("It took too long; give it more time.")
    assert unforeseen(late, tmp_path, "a") is late
    assert list(tmp_path.iterdir()) == []
    assert isinstance(unforeseen(MemoryError(), tmp_path, "a"), OutOfMemoryError)
