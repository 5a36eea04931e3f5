"""The judge with real engine processes, a real store and a model behind them that is not one."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genopt import clock
from genopt.errors import StageError
from genopt.plan import Artifact, JsonValue, Quality
from genopt.process import SessionProcess
from genopt.quality.held_out import held_out
from genopt.tasks.base import BenchConfig
from genopt.tasks.text_data import TextSet
from genopt.tasks.text_evidence import Case
from genopt.tasks.text_judge import TextJudge
from genopt.testing.fake_task import fake_plan, write_fake_model
from genopt.testing.plugin import write_plugin
from genopt.testing.tiny_tokenizer import surround_texts

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


def test_a_session_knows_whether_its_process_is_there(folder: Path) -> None:
    environment = {"PYTHONPATH": str(folder / "plugin")}
    session = SessionProcess("fake", folder / "model", {}, log=folder / "log", timeout_s=60, environment=environment)
    assert not session.alive
    with session:
        assert session.alive
        os.kill(session.pid, signal.SIGKILL)
        session.wait()
        assert not session.alive


def case(session: SessionProcess, model: Path, **options: JsonValue) -> Case:
    return Case(session, fake_plan("candidate", **options), Artifact(digest="d" * 64, path=str(model), bytes=1))


def judge(folder: Path, store: Path, windows: tuple[tuple[int, ...], ...] = WINDOWS, **settings: Any) -> TextJudge:
    model = folder / "model"
    artifact = Artifact(digest="d" * 64, path=str(model), bytes=1)
    config = BenchConfig(
        original=str(model), artifact=artifact, data="", logs=str(folder), concurrency=(1,), output_tokens=8, threads=1, parameters=1,
        **{"quality": 0.99, "seed": 0, "store": str(store), "libraries": {"fake": "1"}, "run": "runs/this", "reuse": "quality", **settings},
    )  # fmt: skip
    data = TextSet(
        windows=windows, prompts=windows[:1], stop_ids=(257,), calibration="", source="a", digest="b", calibration_source="c",
        calibration_digest="d", held_out=held_out(model, windows, 400),
    )  # fmt: skip
    return TextJudge(config, data, fake_plan("original"))


def verdict(found: TextJudge, session: SessionProcess, folder: Path, seconds: float = 60) -> Quality:
    return found.verdict(case(session, folder), clock.now() + seconds, lambda _: None)


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
    assert quality.details["generation"]["greedy_regret"] == quality.details["generation"]["greedy_regret_alone"] == 0


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


def test_a_decode_path_that_errs_is_anomalous_although_the_likelihood_holds(folder: Path, own_store: Path, start: Open) -> None:
    space = ord(" ")  # its text has it, and no window
    quality = verdict(prepared(folder, own_store, start), start(denies=space), folder / "model")
    assert quality.ratio == 1.0
    assert quality.verdict == "anomalous"
    assert "it decodes in a batch other than it scores" in str(quality.details["reason"])


def test_a_candidate_at_the_bar_gets_text_until_the_rest_would_hardly_decide(folder: Path, own_store: Path, start: Open) -> None:
    found = prepared(folder, own_store, start)
    shares = [0.5 + (token % 16) / 15 for window in WINDOWS for token in window[1:]]
    quality = verdict(found, start(loss=-math.log(0.99) * len(shares) / sum(shares)), folder / "model")
    assert quality.verdict == "inconclusive"
    assert 8_000 <= quality.n < sum(len(window) - 1 for window in WINDOWS)
    assert "would decide with a probability" in str(quality.details["reason"])
    assert "generation" in quality.details


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
    assert again.first_look(case(start(), folder / "model"), lambda _: None).n > 2_000
    added = [path.name for path in (own_store / "artifacts").iterdir() if path.name not in stored]
    assert len(added) == 1, "what this candidate said"


def test_a_short_text_is_one_look(folder: Path, own_store: Path, start: Open) -> None:
    found = judge(folder, own_store, WINDOWS[:14])
    found.prepare(start())
    quality = verdict(found, start(), folder / "model")
    assert (quality.verdict, quality.n) == ("accept", 14 * 128)


def test_what_was_judged_on_is_named(folder: Path, own_store: Path) -> None:
    facts = judge(folder, own_store).facts()
    assert (facts["source"], facts["digest"], facts["calibration_source"], facts["calibration_digest"]) == ("a", "b", "c", "d")
    assert facts["looks"] == [2_048, 8_192, 12_288, 16_384, 20_480]


def test_a_prefix_of_two_tokens_is_given_and_not_scored(folder: Path, own_store: Path, start: Open, tmp_path: Path) -> None:
    write_fake_model(tmp_path / "model")
    surround_texts(tmp_path / "model", before=("</s>", "<s>"))
    found = judge(tmp_path, own_store, tuple((257, 256, *window[2:]) for window in WINDOWS[:14]))
    found.prepare(start())
    quality = verdict(found, start(), tmp_path / "model")
    assert (quality.verdict, quality.n) == ("accept", 14 * 127)


class Counting:
    """An open session that counts the windows that it is asked about."""

    def __init__(self, session: SessionProcess) -> None:
        self._session = session
        self.windows = 0

    def compare(self, windows: Any, path: Path) -> Any:
        self.windows += len(windows)
        return self._session.compare(windows, path)

    def distributions(self, window: Any, wanted: Any) -> Any:
        self.windows += 1
        return self._session.distributions(window, wanted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def looked(found: TextJudge, session: SessionProcess, folder: Path, **options: JsonValue) -> tuple[Quality, Case, int]:
    """The verdict of the first look, the case, and how many windows were scored for it."""
    counting: Any = Counting(session)
    asked = case(counting, folder / "model", **options)
    return found.first_look(asked, lambda _: None), asked, counting.windows


def test_scores_of_an_earlier_run_are_found_again_and_judged_anew(folder: Path, own_store: Path, start: Open) -> None:
    closed = SessionProcess("fake", folder / "model", {}, log=folder / "log", timeout_s=1)
    session = start(loss=0.05)
    first, asked, scored = looked(prepared(folder, own_store, start), session, folder, loss=0.05)
    assert (first.verdict, asked.earlier) == ("reject", [])
    assert scored == 16
    later = judge(folder, own_store, run="runs/later", reuse="quality", quality=0.9)
    later.prepare(closed)
    second, asked, scored = looked(later, session, folder, loss=0.05)
    assert scored == 1, "one window is scored again, to see that it comes out alike"
    assert (second.ratio, second.ci_low, second.n) == (first.ratio, first.ci_low, first.n)
    assert second.verdict == "inconclusive", "not below this run's bar"
    assert [(one.what, one.run) for one in asked.earlier] == [("quality", "runs/this")]
    assert asked.earlier[0].environment["libraries"] == {"fake": "1"}


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"reuse": "nothing"}, {}),
        ({"libraries": {"fake": "2"}}, {}),
        ({"environment": {"CUDA_VISIBLE_DEVICES": ""}}, {}),
        ({}, {"text": "other "}),
    ],
)  # fmt: skip
def test_other_conditions_find_nothing(folder: Path, own_store: Path, start: Open, settings: dict[str, Any], options: dict[str, JsonValue]) -> None:
    looked(prepared(folder, own_store, start), start(), folder)
    other = judge(folder, own_store, **{"run": "runs/later", "reuse": "quality", **settings})
    other.prepare(start())
    _, asked, scored = looked(other, start(), folder, **options)
    assert (scored, asked.earlier) == (16, [])


def test_a_fresh_run_asks_the_original_anew_too(folder: Path, own_store: Path, start: Open) -> None:
    looked(prepared(folder, own_store, start), start(), folder)
    closed = SessionProcess("fake", folder / "model", {}, log=folder / "log", timeout_s=1)
    with pytest.raises(StageError, match="closed"):
        judge(folder, own_store, run="runs/later", reuse="nothing").prepare(closed)


def test_threads_change_no_scores(folder: Path, own_store: Path, start: Open) -> None:
    looked(prepared(folder, own_store, start), start(), folder, threads=1)
    again = judge(folder, own_store, reuse="quality")
    again.prepare(start())
    _, asked, scored = looked(again, start(), folder, threads=2, spare_threads=1)
    assert (scored, asked.earlier) == (1, []), "the same run found it"


def test_scores_that_do_not_come_out_again_are_not_believed(folder: Path, own_store: Path, start: Open) -> None:
    looked(prepared(folder, own_store, start), start(), folder)
    later = judge(folder, own_store, run="runs/later", reuse="quality")
    later.prepare(start())
    quality, asked, scored = looked(later, start(loss=0.05), folder)
    assert (scored, asked.earlier) == (17, [])
    assert quality.verdict == "reject"


def test_evidence_that_is_damaged_is_found_anew(folder: Path, own_store: Path, start: Open) -> None:
    found = prepared(folder, own_store, start)
    looked(found, start(), folder)
    for path in (own_store / "artifacts").glob("*/evidence.parquet"):
        path.write_bytes(b"nothing")
    again = judge(folder, own_store, reuse="quality")
    again.prepare(start())
    assert looked(again, start(), folder)[2] == 16
    assert looked(again, start(), folder)[2] == 1, "and kept again"
