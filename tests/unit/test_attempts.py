"""What benches do where something fails: the baseline gives way, a candidate ends with a reason, and nobody doubts the node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from genopt import clock
from genopt.errors import OutOfMemoryError, StageError, StageTimeoutError
from genopt.measure.duel import Comparison
from genopt.plan import Artifact, Candidate, Metric, Plan, Ratio
from genopt.process import SessionProcess
from genopt.tasks.attempts import Rows, attempt, open_references, pace_of, unforeseen
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


def rates(found: dict[str, float]) -> dict[str, Metric]:
    return {name: Metric(value=value, unit="1/s") for name, value in found.items()}


EIGHT, BOTH = {"throughput_tok_s@8": 400.0}, {"throughput_tok_s@8": 400.0, "throughput_tok_s@128": 2500.0}


@pytest.mark.parametrize(
    ("decided", "contended", "candidate", "baseline", "said"),
    [
        (True, False, {}, {}, "0.76x the baseline's speed"),
        (False, False, {}, {}, "0.76x the baseline's speed (known to ±13% only)"),
        (True, True, {}, {}, "0.76x the baseline's speed, on a node that was not quiet"),
        (True, False, EIGHT, {}, "0.76x the baseline's speed"),
        (True, False, EIGHT, {"throughput_tok_s@128": 1000.0}, "0.76x the baseline's speed"),
        (
            True, True, BOTH, {"throughput_tok_s@8": 100.0, "throughput_tok_s@128": 1000.0},
            "0.76x the baseline's speed and 2.50x its throughput with 128 at once, on a node that was not quiet",
        ),
        (True, False, {"images_per_s@4": 3.0}, {"images_per_s@4": 2.0}, "0.76x the baseline's speed and 1.50x its throughput with 4 at once"),
    ],
)  # fmt: skip
def test_the_pace_is_that_of_one_request_and_of_the_largest_batches_where_they_decide(
    decided: bool, contended: bool, candidate: dict[str, float], baseline: dict[str, float], said: str
) -> None:
    ratio = Ratio(value=0.76, ci_low=0.67, ci_high=0.87)
    assert pace_of(Comparison(rates(candidate), {}, ratio, decided, 0, contended, ()), rates(baseline)) == said
