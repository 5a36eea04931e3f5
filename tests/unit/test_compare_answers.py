"""Before people vote: which variants, which prompts, and answers that are generated once."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

import genopt
from genopt.cli import main
from genopt.compare.preparation import prepare_comparison
from genopt.compare.prompts import EVERYDAY, load_prompts
from genopt.compare.variants import choose_variants
from genopt.errors import DataError, RunFolderError, SpecError, StageCrashedError
from genopt.quality.comparison import TextAnswer, comparisons
from genopt.report.assemble import assemble
from genopt.store.run_folder import RunFolder
from genopt.testing.fake_run import REJECTED, WINNER, write_fake_run
from genopt.testing.plugin import write_plugin

LENGTH = 40


class Heard:
    """Remembers how far the answers were said to be."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []

    def __call__(self, variant: str, *, done: int, of: int) -> None:
        self.steps.append((variant, done, of))


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine processes find the fake engine."""
    write_plugin(tmp_path / "plugin")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "plugin"), str(Path(__file__).parents[2])]))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Who says so?\n\n<b>Really?</b>\n")
    return path


# Prompts


def test_the_built_in_prompts_are_twenty_and_varied() -> None:
    assert load_prompts(None) == EVERYDAY
    assert len(EVERYDAY) == len(set(EVERYDAY)) == 20
    assert max(map(len, EVERYDAY)) < 300


def test_prompts_are_read_once_each(tmp_path: Path) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("\ufeffone\r\n\r\n  two  \none\n\n", encoding="utf-8")
    assert load_prompts(text) == ("one", "two")
    lines.write_text('{"prompt": "one\\ntwo", "answer": "x"}\n\n{"prompt": "three"}')
    assert load_prompts(lines) == ("one\ntwo", "three")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.txt", b"", "has no prompts"), ("p.txt", b" \n\n", "has no prompts"), ("p.txt", b"caf\xe9\n", "not UTF-8 text"),
        ("p.csv", b"x", "ends in .txt, .jsonl, .parquet"),
        ("p.txt", b"x" * 300_000, "Line 1 of .* longer than"), ("p.txt", b"".join(b"%d\n" % n for n in range(501)), "more than 500 prompts"),
        ("p.jsonl", b"{]\n", "Line 1 of .* not JSON"), ("p.jsonl", b'\n{"text": "x"}\n', "Line 2 of .* has no prompt"),
        ("p.jsonl", b'{"prompt": " "}\n', "has no prompt"), ("p.jsonl", b'{"prompt": "\\ud800"}\n', "half a character"),
        ("p.jsonl", b"[1]\n", "has no prompt"), ("p.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}', "has conversations"),
    ],
)  # fmt: skip
def test_a_file_of_prompts_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_prompts(tmp_path / name)


def test_a_file_of_prompts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_prompts(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        load_prompts(tmp_path / "folder.txt")


def test_a_huge_file_is_given_up_early(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as stream:
        stream.truncate(10**9)
    with pytest.raises(DataError, match=r"Line 1 of .* longer than"):
        load_prompts(path)


# Variants


def test_the_original_meets_the_winner_unless_others_are_named(tmp_path: Path) -> None:
    report = assemble(write_fake_run(tmp_path / "run"))
    assert [variant.name for variant in choose_variants(report, None, None)] == ["original", WINNER]
    assert [variant.name for variant in choose_variants(report, "baseline", REJECTED)] == ["baseline", REJECTED]


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ("nobody", None, "no candidate 'nobody'; choose of original, baseline, quick"), (None, "broken", "it is failed .its process died"),
        ("quick", "quick", "with itself"), ("quick", None, "with itself"),
    ],
)  # fmt: skip
def test_variants_that_cannot_be_compared(tmp_path: Path, a: str | None, b: str | None, problem: str) -> None:
    report = assemble(write_fake_run(tmp_path / "run"))
    with pytest.raises(SpecError, match=problem):
        choose_variants(report, a, b)


def test_without_a_winner_two_are_to_be_named(tmp_path: Path) -> None:
    report = assemble(write_fake_run(tmp_path / "run"))
    with pytest.raises(SpecError, match="Name two candidates to compare: original"):
        choose_variants(report.model_copy(update={"winner": None}), None, None)
    with pytest.raises(SpecError, match="nothing to compare"):
        choose_variants(report.model_copy(update={"candidates": ()}), None, None)


def test_a_store_that_was_cleared_is_explained(tmp_path: Path) -> None:
    report = assemble(write_fake_run(tmp_path / "run"))
    (tmp_path / "run-model").rename(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="gone from the store"):
        choose_variants(report, None, None)


# Answers


def prepare(run: RunFolder, prompts: Path | None, heard: Heard, b: str | None = None) -> list[tuple[str, str]]:
    found = prepare_comparison(run, a=None, b=b, prompts=prompts, max_tokens=LENGTH, progress=heard).read()
    pairs = [(question.a, question.b) for question in found.questions]
    return [(a.text, b.text) for a, b in pairs if isinstance(a, TextAnswer) and isinstance(b, TextAnswer)]


@pytest.mark.usefixtures("fake_engine")
def test_answers_are_generated_once_and_shared_by_comparisons(tmp_path: Path, prompts: Path) -> None:
    run, heard = write_fake_run(tmp_path / "run", stop_after=30), Heard()
    first = prepare(run, prompts, heard)
    assert first == [("original says so. original say", "quick says so. quick says so.")] * 2
    assert heard.steps == [(name, done, 2) for name in ("original", WINNER) for done in range(3)]
    again = Heard()
    assert prepare(run, prompts, again) == first
    assert again.steps == []
    other = Heard()
    prepare(run, prompts, other, b=REJECTED)
    assert {name for name, _, _ in other.steps} == {REJECTED}
    prompts.write_text("Who says so?\nAnd now?\n")
    more = Heard()
    prepare(run, prompts, more)
    assert [step for step in more.steps if step[0] == WINNER] == [(WINNER, 1, 2), (WINNER, 2, 2)]
    assert len(comparisons(run.path)) == 3


@pytest.mark.usefixtures("fake_engine")
def test_an_engine_that_dies_loses_no_answer_that_was_there(tmp_path: Path, prompts: Path) -> None:
    prompts.write_text("fine\n~\n")
    run = write_fake_run(tmp_path / "run", crash_token=ord("~"))
    heard = Heard()
    with pytest.raises(StageCrashedError, match=r"compare\.log"):
        prepare(run, prompts, heard)
    assert heard.steps == [("original", 0, 2), ("original", 1, 2)]
    assert comparisons(run.path) == []
    prompts.write_text("fine\nalso fine\n")
    assert len(prepare(run, prompts, heard)) == 2
    assert heard.steps[2:4] == [("original", 1, 2), ("original", 2, 2)]


@pytest.mark.usefixtures("fake_engine")
def test_the_same_from_python(tmp_path: Path, prompts: Path) -> None:
    run = genopt.load_run(write_fake_run(tmp_path / "run", stop_after=9).path)
    with run.compare(prompts=prompts, raters=2) as page:
        assert [link.rater for link in page.links] == ["rater 1", "rater 2"]
        link = page.links[1].url
        with httpx.Client() as http:
            codes = [http.post(f"{link}/votes", json={"position": position, "said": "tie"}).status_code for position in range(2)]
        with pytest.raises(RunFolderError, match="Another process takes votes"), run.compare(prompts=prompts):
            pass
    assert codes == [200, 200]
    assert run.report.human[0].votes["tie"] == 2
    assert "What people preferred" in (run.path / "report.html").read_text(encoding="utf-8")


def test_a_prompt_that_is_longer_than_the_context_is_refused_before_anything_is_opened(tmp_path: Path, prompts: Path) -> None:
    prompts.write_text("short\n" + "long " * 100 + "\n")
    run, heard = write_fake_run(tmp_path / "run"), Heard()
    with pytest.raises(DataError, match=r"begins 'long long .* context of 512; shorten it or give a smaller --max-tokens"):
        prepare(run, prompts, heard)
    assert heard.steps == []


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    for arguments, code, word in (
        ([str(tmp_path / "none")], 2, "not a run folder"), ([str(run.path), "original", "nobody"], 2, "nobody"),
        ([str(run.path), "--prompts", str(tmp_path / "none.txt")], 2, "none.txt"), ([str(run.path), "--raters", "0"], 2, "raters"),
        ([str(run.path), "--port", "70000"], 2, "port"),
    ):  # fmt: skip
        assert main(["compare", *arguments]) == code
        said = capsys.readouterr().err
        assert word in said
        assert "Traceback" not in said
