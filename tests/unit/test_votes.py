"""Votes and what follows from them: counted once, blind until the end, and never read for more than they say."""

from __future__ import annotations

import stat
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genopt.compare.ballot_box import BallotBox, Said
from genopt.compare.raters import order_for, require_raters
from genopt.errors import NotOpenError, RunFolderError, StorageError
from genopt.plan import Verdict
from genopt.quality.agreement import agreement
from genopt.quality.comparison import Comparison, ComparisonFolder, Question, TextAnswer, comparison_folder, comparisons, hold
from genopt.quality.preference import HumanResult, human_result
from genopt.quality.votes import Ballots, Choice, Side, Vote, count_ballots
from genopt.store.append_log import AppendLog, read_log

CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "bad")


def comparison(count: int) -> Comparison:
    questions = (
        Question(id=f"q{number}", prompt=f"Prompt {number}?", a=TextAnswer(text=f"first {number}"), b=TextAnswer(text=f"second {number}"))
        for number in range(count)
    )
    return Comparison(a="original", b="quick", questions=tuple(questions))


def folder(path: Path, count: int = 4) -> ComparisonFolder:
    found = ComparisonFolder(path / "compare" / "original-vs-quick")
    found.write(comparison(count))
    return found


def vote(rater: str, question: str, choice: Choice, left: Side = "a") -> dict[str, Any]:
    return Vote(time=1.0, rater=rater, question=question, choice=choice, left=left).model_dump(mode="json")


def finish(rater: str) -> dict[str, Any]:
    return {"event": "finish", "time": 2.0, "rater": rater}


def judged(*said: str, verdicts: tuple[Verdict | None, Verdict | None] = ("reference", "accept"), questions: int | None = None) -> HumanResult:
    """The result of one word per rater, one letter per question: a, b, t(ie), x (both bad) or . (no vote)."""
    letters: dict[str, Choice] = {"a": "a", "b": "b", "t": "tie", "x": "bad"}
    records = [
        vote(f"rater {number}", f"q{place}", letters[letter], left="ab"[place % 2])
        for number, word in enumerate(said, start=1) for place, letter in enumerate(word) if letter != "."
    ]  # fmt: skip
    count = questions or max(map(len, said))
    return human_result("original-vs-quick", comparison(count), count_ballots(records), verdicts)


# What counts


def test_the_last_vote_counts_until_the_names_were_seen() -> None:
    found = count_ballots([
        vote("r1", "q0", "a"), vote("r2", "q0", "b"), vote("r1", "q0", "tie"), finish("r1"), vote("r1", "q0", "b"), vote("r2", "q0", "bad"),
    ])  # fmt: skip
    assert [(item.rater, item.choice) for item in found.votes] == [("r1", "tie"), ("r2", "bad")]
    assert found.finished == {"r1"}


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("123"), st.sampled_from(CHOICES)), max_size=30), st.integers(1, 3))
def test_sending_votes_again_changes_nothing(cast: list[tuple[str, str, Choice]], times: int) -> None:
    records = [vote(*item) for item in cast]
    once = count_ballots(records)
    assert count_ballots([record for record in records for _ in range(times)]) == once
    assert len({(item.rater, item.question) for item in once.votes}) == len(once.votes)
    assert {(item.rater, item.question): item.choice for item in once.votes} == {(rater, question): choice for rater, question, choice in cast}


@pytest.mark.parametrize("record", [{"event": "vote"}, {**vote("r", "q0", "a"), "choice": "c"}, {"event": "finish"}, {}])
def test_a_record_that_is_no_vote_is_named(record: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=r"Vote 2 cannot be read .* remove that line"):
        count_ballots([vote("r", "q0", "a"), record])


# Who is shown what


@given(seed=st.text(max_size=20), count=st.integers(1, 41))
def test_every_rater_sees_every_question_once_and_each_variant_first_on_half(seed: str, count: int) -> None:
    ids = [f"q{number}" for number in range(count)]
    order = order_for(seed, ids)
    assert sorted(shown.question for shown in order) == sorted(ids)
    sides = Counter(shown.left for shown in order)
    assert abs(sides["a"] - sides["b"]) <= 1
    assert order_for(seed, list(reversed(ids))) == order


def test_raters_have_orders_and_sides_of_their_own() -> None:
    ids = [f"q{number}" for number in range(20)]
    orders = [order_for(str(seed), ids) for seed in range(200)]
    assert len(set(orders)) == 200
    first_question = Counter(order[0].question for order in orders)
    assert max(first_question.values()) < 30
    left_of_q0 = sum(shown.left == "a" for order in orders for shown in order if shown.question == "q0")
    assert 70 < left_of_q0 < 130
    changes = sum(before.left != after.left for order in orders for before, after in pairwise(order))
    assert 0.45 < changes / (200 * 19) < 0.6


def test_links_cannot_be_guessed_and_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "raters.json"
    first = require_raters(path, 2)
    assert [rater.name for rater in first] == ["rater 1", "rater 2"]
    assert all(len(rater.token) >= 22 for rater in first)
    assert len({rater.token for rater in first} | {rater.seed for rater in first}) == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert require_raters(path, 1) == first
    assert require_raters(path, 3)[:2] == first
    path.write_text("{}x")
    with pytest.raises(StorageError, match="new links are made"):
        require_raters(path, 1)


# The box


def say(box: BallotBox, number: int, *said: Said) -> None:
    for position, word in enumerate(said):
        box.cast(box.raters[number], position, word)


def test_votes_are_about_variants_and_not_about_places(tmp_path: Path) -> None:
    box = BallotBox(folder(tmp_path, 20))
    rater = box.raters[0]
    for position in range(20):
        shown = box.exhibit(rater, position)
        assert isinstance(shown.left, TextAnswer)
        box.cast(rater, position, "left" if shown.left.text.startswith("second") else "right")
    assert {item.choice for item in box.folder.ballots().votes} == {"b"}
    assert Counter(item.left for item in box.folder.ballots().votes) == {"a": 10, "b": 10}
    assert Counter(box.sheet(rater).said) == {"left": 10, "right": 10}


def test_a_vote_posted_twice_is_written_once(tmp_path: Path) -> None:
    box = BallotBox(folder(tmp_path))
    say(box, 0, "left", "left")
    say(box, 0, "left", "tie")
    assert len(list(read_log(box.folder.votes))) == 3
    assert box.sheet(box.raters[0]).said == ("left", "tie", None, None)
    assert len(box.folder.ballots().votes) == 2


def test_a_new_box_goes_on_where_the_last_one_was_killed(tmp_path: Path) -> None:
    first = BallotBox(folder(tmp_path), raters=2)
    say(first, 0, "left", "bad")
    say(first, 1, "right")
    with first.folder.votes.open("ab") as log:
        log.write(b'{"event": "vote", "time": 1, "ra')
    again = BallotBox(first.folder)
    assert again.raters == first.raters
    assert [again.sheet(rater).said for rater in again.raters] == [("left", "bad", None, None), ("right", None, None, None)]
    assert [again.exhibit(rater, 3) for rater in again.raters] == [first.exhibit(rater, 3) for rater in again.raters]


def test_names_come_after_the_last_vote_and_close_the_ballot(tmp_path: Path) -> None:
    box = BallotBox(folder(tmp_path), raters=2)
    rater = box.raters[0]
    say(box, 0, "left", "right", "tie")
    with pytest.raises(NotOpenError, match="1 questions have no vote"):
        box.finish(rater)
    with pytest.raises(NotOpenError, match="after the last vote"):
        box.choices(rater)
    box.cast(rater, 3, "bad")
    box.finish(rater)
    box.finish(rater)
    with pytest.raises(NotOpenError, match="closed"):
        box.cast(rater, 0, "bad")
    assert Counter(box.choices(rater).values())["tie"] == 1
    assert BallotBox(box.folder).sheet(rater).finished
    box.cast(box.raters[1], 0, "left")
    assert not box.sheet(box.raters[1]).finished


@pytest.mark.parametrize("position", [-1, 4, 10**9])
def test_there_are_no_questions_beyond_the_last(tmp_path: Path, position: int) -> None:
    box = BallotBox(folder(tmp_path))
    with pytest.raises(IndexError):
        box.exhibit(box.raters[0], position)
    with pytest.raises(IndexError):
        box.cast(box.raters[0], position, "left")


def test_a_vote_that_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = BallotBox(folder(tmp_path))

    def fail(_log: AppendLog, _record: object) -> None:
        raise StorageError("No space is left; free some.")

    with monkeypatch.context() as patched:
        patched.setattr(AppendLog, "append", fail)
        with pytest.raises(StorageError):
            box.cast(box.raters[0], 0, "left")
    assert box.sheet(box.raters[0]).said[0] is None
    box.cast(box.raters[0], 0, "left")
    assert box.sheet(box.raters[0]).said[0] == "left"


def test_pictures_are_kept_by_their_content(tmp_path: Path) -> None:
    place = ComparisonFolder(tmp_path / "compare" / "pictures")
    png = b"\x89PNG\r\n\x1a\n and so on"
    answer = place.add_image(png)
    assert place.add_image(png) == answer
    assert place.image(answer).read_bytes() == png
    with pytest.raises(StorageError, match="save it as PNG"):
        place.add_image(b"GIF89a")


def test_the_folders_of_a_run(tmp_path: Path) -> None:
    hostile = comparison_folder(tmp_path, "../../etc", "a b/<c>", "0123456789abcdef")
    assert hostile.path.parent == tmp_path / "compare"
    assert comparisons(tmp_path) == []
    one = folder(tmp_path)
    assert [found.path for found in comparisons(tmp_path)] == [one.path]
    (one.path / "comparison.json").write_text("{}")
    with pytest.raises(StorageError, match="delete its folder"):
        one.read()


def test_one_process_at_a_time_takes_votes(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(RunFolderError, match="Another process takes votes"), hold(tmp_path):
        pass
    with hold(tmp_path):
        pass


# The result


def test_one_rater_is_a_sign_test() -> None:
    found = judged("bbbbbbbbaatx")
    assert (found.prompts_a, found.prompts_b, found.prompts_even, found.judged) == (2, 8, 2, 12)
    assert found.votes == {"a": 2, "b": 8, "tie": 1, "bad": 1}
    assert found.p_value == pytest.approx(0.109375)
    assert found.preference is not None
    assert (found.preference.value, found.preference.ci_low, found.preference.ci_high) == pytest.approx((0.8, 0.44390, 0.97479), abs=1e-5)
    assert found.net is not None
    assert found.net.value == pytest.approx(0.5)
    assert found.decision.startswith(
        "People preferred quick on 8 of the 10 prompts with a preference (80%, 95% interval 44–97%; sign test p = 0.11); 2 were even."
    )
    assert found.details[0].preferred == "b"
    assert found.details[11].preferred == "neither"


def test_several_raters_make_no_more_prompts() -> None:
    one, three = judged("bbbbaa"), judged("bbbbaa", "bbbbaa", "bbbbaa")
    assert three.p_value == one.p_value
    assert three.preference == one.preference
    assert three.votes == {"a": 6, "b": 12, "tie": 0, "bad": 0}
    split = judged("ab", "ba", "tt")
    assert (split.prompts_even, split.p_value) == (2, None)
    assert "preferred neither original nor quick on any of 2 prompts" in split.decision


def test_nobody_voted() -> None:
    found = judged("....")
    assert (found.judged, found.p_value, found.preference, found.net, found.agreement) == (0, None, None, None, None)
    assert found.decision == "Nobody has voted yet."
    assert found.raters == ()


def test_votes_so_far_are_called_so() -> None:
    assert judged("b", questions=20).decision.startswith("So far 1 of 20 prompts has a vote. People preferred quick on 1 of the 1 prompt")
    assert judged("bb", questions=20).decision.startswith("So far 2 of 20 prompts have a vote.")


@pytest.mark.parametrize(
    ("said", "verdicts", "relation"),
    [
        ("b" * 12, ("reference", "accept"), "confirms"), ("t" * 20, ("reference", "accept"), "confirms"),
        ("a" * 12, ("reference", "accept"), "contradicts"), ("ab" * 10, ("reference", "accept"), "open"),
        ("t" * 9, ("reference", "accept"), "open"), ("bbb", ("reference", "accept"), "open"),
        ("a" * 12, ("reference", "reject"), "confirms"), ("t" * 20, ("reference", "reject"), "contradicts"),
        ("b" * 12, ("reference", "reject"), "contradicts"), ("ab" * 10, ("reference", "reject"), "open"),
        ("b" * 12, ("reject", "accept"), "confirms"), ("a" * 12, ("reject", "accept"), "contradicts"),
        ("t" * 30, ("reject", "accept"), "contradicts"), ("b" * 12, ("accept", "accept"), "confirms"),
        ("b" * 12, ("reference", "inconclusive"), "none"), ("b" * 12, ("reference", "anomalous"), "none"),
        ("b" * 12, ("reject", "reject"), "none"), ("b" * 12, (None, "accept"), "none"),
    ],
)  # fmt: skip
def test_people_confirm_contradict_or_leave_open(said: str, verdicts: tuple[Verdict | None, Verdict | None], relation: str) -> None:
    found = judged(said, verdicts=verdicts)
    assert found.relation == relation
    assert found.verdict == verdicts[1]
    phrase = {"confirms": "That confirms", "contradicts": "That contradicts", "open": "neither confirms nor", "none": "no automatic verdict"}
    assert phrase[relation] in found.decision


@given(st.lists(st.text("abtx.", min_size=12, max_size=12), min_size=1, max_size=4))
@settings(max_examples=60)
def test_naming_the_variants_the_other_way_round_mirrors_the_result(said: list[str]) -> None:
    one = judged(*said, verdicts=("accept", "accept"))
    other = judged(*[word.translate(str.maketrans("ab", "ba")) for word in said], verdicts=("accept", "accept"))
    assert (one.prompts_a, one.prompts_b, one.p_value) == (other.prompts_b, other.prompts_a, other.p_value)
    assert one.agreement == other.agreement
    if one.net and other.net:
        assert (one.net.value, one.net.ci_low, one.net.ci_high) == pytest.approx((-other.net.value, -other.net.ci_high, -other.net.ci_low))


def test_a_rater_who_always_takes_the_first_answer_is_noticed() -> None:
    found = judged("ab" * 10)
    assert found.first_shown is not None
    assert found.first_shown.value == 1.0
    assert any("shown first won 100% of the preferences" in note for note in found.notes)
    assert judged("abba" * 5).notes == ()


def test_agreement_of_two_raters_is_reported() -> None:
    found = judged("aabbt", "aabbt")
    assert found.agreement is not None
    assert (found.agreement.share, found.agreement.alpha, found.agreement.pairs) == (1.0, 1.0, 5)
    assert found.notes[0].startswith("Two raters said the same about 100% of the prompts")


def test_votes_on_other_questions_are_left_out() -> None:
    ballots = count_ballots([vote("r", "q0", "a"), vote("r", "gone", "b")])
    found = human_result("n", comparison(2), ballots, (None, None))
    assert (found.judged, found.votes["b"]) == (1, 0)
    assert human_result("n", comparison(2), Ballots(), (None, None)).judged == 0


# Agreement


def test_alpha_agrees_with_krippendorffs_example() -> None:
    rows = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[value for value in column if value != "."] for column in zip(*(row.split() for row in rows), strict=True)]
    found = agreement(units)
    assert found is not None
    assert found.alpha == pytest.approx(0.743, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from(CHOICES), max_size=5), max_size=12))
def test_agreement_is_at_most_perfect(units: list[list[Choice]]) -> None:
    found = agreement(units)
    if all(len(unit) < 2 for unit in units):
        assert found is None
        return
    assert found is not None
    assert 0 <= found.share <= 1
    assert found.alpha is None or found.alpha <= 1 + 1e-12
    assert (found.share == 1) == (found.alpha is None or found.alpha > 1 - 1e-12)
