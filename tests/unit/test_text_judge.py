"""The judge with real engine processes, a real store and a model behind them that is not one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genopt import clock
from genopt.plan import Artifact, JsonValue, Quality
from genopt.process import SessionProcess
from genopt.quality.held_out import held_out
from genopt.tasks.base import BenchConfig
from genopt.tasks.text_data import TextSet
from genopt.tasks.text_judge import Case, TextJudge
from genopt.testing.fake_task import fake_plan, write_fake_model
from genopt.testing.plugin import write_plugin

Open = Callable[..., SessionProcess]
WINDOWS = tuple(tuple(97 + (3 * row + place * row) % 26 for place in range(129)) for row in range(160))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge")
    write_fake_model(path / "model")
    write_plugin(path / "plugin")
    return path


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Open]:
    opened: dict[str, SessionProcess] = {}

    def run(**options: JsonValue) -> SessionProcess:
        if str(options) not in opened:
            environment = {"PYTHONPATH": str(folder / "plugin")}
            session = SessionProcess("fake", folder / "model", options, log=folder / "log", timeout_s=60, environment=environment)
            opened[str(options)] = session.open()
        return opened[str(options)]

    yield run
    for session in opened.values():
        session.close()


def judge(folder: Path, store: Path, windows: tuple[tuple[int, ...], ...] = WINDOWS) -> TextJudge:
    model = folder / "model"
    artifact = Artifact(digest="d" * 64, path=str(model), bytes=1)
    config = BenchConfig(
        original=str(model), artifact=artifact, data="", logs=str(folder), quality=0.99, concurrency=(1,), output_tokens=8, threads=1,
        parameters=1, seed=0, store=str(store), libraries={"fake": "1"},
    )  # fmt: skip
    data = TextSet(
        windows=windows, prompts=windows[:1], stop_ids=(257,), calibration="", source="a", digest="b", calibration_source="c",
        calibration_digest="d", held_out=held_out(model, windows, 400),
    )  # fmt: skip
    return TextJudge(config, data, fake_plan("original"))


def verdict(found: TextJudge, session: SessionProcess, folder: Path, seconds: float = 60) -> Quality:
    return found.verdict(Case(session, folder), clock.now() + seconds, lambda _: None)


def prepared(folder: Path, store: Path, start: Open) -> TextJudge:
    found = judge(folder, store)
    found.prepare(start())
    return found


def test_the_original_itself_is_accepted(folder: Path, own_store: Path, start: Open) -> None:
    quality = verdict(prepared(folder, own_store, start), start(), folder / "model")
    assert (quality.verdict, quality.ratio) == ("accept", 1.0)
    assert 8_000 <= quality.n <= 8_400, "the first look only rejects"
    assert quality.details["kl_mean"] == 0
    assert (quality.details["top1_agreement"], quality.details["flips_per_1000"]) == (1.0, 0.0)
    assert quality.details["reads_prompts_alike"] is True
    assert quality.details["first_ids"] == list(b"<|user|>")
    assert isinstance(quality.details["generation"], dict)
    assert quality.details["generation"]["length_share"] == 1


def test_damage_is_rejected_on_little_text(folder: Path, own_store: Path, start: Open) -> None:
    quality = verdict(prepared(folder, own_store, start), start(loss=0.1), folder / "model")
    assert quality.verdict == "reject"
    assert quality.n < 2_300
    worst = quality.details["worst_sequences"]
    assert isinstance(worst, list)
    assert len(worst) == 3
    assert "below the bar" in str(quality.details["reason"])


def test_truncated_output_is_anomalous_although_the_likelihood_holds(folder: Path, own_store: Path, start: Open) -> None:
    quality = verdict(prepared(folder, own_store, start), start(stop_after=8), folder / "model")
    assert quality.verdict == "anomalous"
    assert "25% of the original's length" in str(quality.details["reason"])


def test_a_candidate_near_the_bar_gets_all_text_and_then_no_verdict(folder: Path, own_store: Path, start: Open) -> None:
    found = prepared(folder, own_store, start)
    shares = [0.5 + (token % 16) / 15 for window in WINDOWS for token in window[1:]]
    quality = verdict(found, start(loss=-math.log(0.99) * len(shares) / sum(shares)), folder / "model")
    assert quality.verdict == "inconclusive"
    assert quality.n == sum(len(window) - 1 for window in WINDOWS)


def test_no_time_leaves_what_is_known(folder: Path, own_store: Path, start: Open) -> None:
    quality = verdict(prepared(folder, own_store, start), start(loss=0.01), folder / "model", seconds=0)
    assert quality.verdict == "inconclusive"
    assert quality.details["stopped"] == quality.details["reason"]


def test_the_original_answers_once_for_all_runs(folder: Path, own_store: Path, start: Open) -> None:
    prepared(folder, own_store, start)
    stored = sorted(path.name for path in (own_store / "artifacts").iterdir())
    assert len(stored) == 2
    assert len(list((own_store / "artifacts").rglob("reference.parquet"))) == 1

    closed = SessionProcess("fake", folder / "model", {}, log=folder / "log", timeout_s=1)
    again = judge(folder, own_store)
    again.prepare(closed)
    assert again.first_look(Case(start(), folder / "model"), lambda _: None).n > 2_000
    assert sorted(path.name for path in (own_store / "artifacts").iterdir()) == stored


def test_a_short_text_is_one_look(folder: Path, own_store: Path, start: Open) -> None:
    found = judge(folder, own_store, WINDOWS[:14])
    found.prepare(start())
    quality = verdict(found, start(), folder / "model")
    assert (quality.verdict, quality.n) == ("accept", 14 * 128)


def test_what_was_judged_on_is_named(folder: Path, own_store: Path) -> None:
    facts = judge(folder, own_store).facts()
    assert (facts["source"], facts["digest"], facts["calibration_source"], facts["calibration_digest"]) == ("a", "b", "c", "d")
    assert facts["looks"] == [2_048, 8_192, 12_288, 16_384, 20_480]
