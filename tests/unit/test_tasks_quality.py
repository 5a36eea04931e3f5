"""Questions are read strictly, marked fairly, and compared without pretending to know more than they tell."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.engines.base import Generation, GenerationRequest, Scores
from genopt.errors import DataError
from genopt.quality.accuracy import compare_scores, items_needed
from genopt.quality.task_items import TaskItem, holds_items, read_items
from genopt.quality.task_scoring import contains, mark


def write(folder: Path, lines: Sequence[object], name: str = "items.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{number} + 1 =", "answer": str(number + 1), "source": "ignored"} for number in range(count)]


def test_answers_and_choices_are_read(tmp_path: Path) -> None:
    chosen = {"prompt": "The sky is", "choices": ["green", "blue"], "label": 1}
    named = {"prompt": "Grass is", "choices": ["green", "blue"], "label": "green"}
    found = read_items(write(tmp_path, [*questions(10), chosen, named, ""]))
    assert found.items[0] == TaskItem(prompt="0 + 1 =", answer="1")
    assert [item.label for item in found.items[10:]] == [1, 0]
    assert read_items(write(tmp_path, [*questions(10), chosen, named], "again.jsonl")).digest == found.digest


def test_the_same_question_counts_once(tmp_path: Path) -> None:
    found = read_items(write(tmp_path, [*questions(10), *questions(3)]))
    assert (len(found.items), found.repeated) == (10, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a"}, "Line 11 of .*a prompt needs either an answer, or choices with a label"),
        ({"prompt": "a", "answer": None}, "needs either an answer"),
        ({"prompt": "a", "answer": ""}, "Line 11"),
        ({"prompt": "", "answer": "b"}, "Line 11"),
        ({"answer": "b"}, "Line 11"),
        ({"prompt": "a", "answer": 3}, "Line 11"),
        ({"prompt": "a", "choices": ["b", "c"]}, "choices need a label"),
        ({"prompt": "a", "choices": ["b", "c"], "label": 2}, "choices need a label"),
        ({"prompt": "a", "choices": ["b", "c"], "label": "d"}, "Line 11"),
        ({"prompt": "a", "choices": ["b", "b"], "label": 0}, "two different choices"),
        ({"prompt": "a", "choices": ["b", "c"], "label": 0, "answer": "b"}, "needs either"),
        ({"prompt": "3 + 1 =", "answer": "5"}, "Lines 4 and 11 of .* ask the same and expect different answers"),
        (["a"], "`prompt`: Field required"),
        ("{", "Line 11 of .* is not JSON"),
    ],
)
def test_what_cannot_be_marked_is_refused_by_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_items(write(tmp_path, [*questions(10), line]))
    assert "\n" not in str(caught.value)


def test_too_few_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 9 different questions"):
        read_items(write(tmp_path, questions(9)))


def test_only_questions_are_questions(tmp_path: Path) -> None:
    assert holds_items(write(tmp_path, questions(1)))
    assert not holds_items(write(tmp_path, [{"text": "a", "prompt": "b"}], "b.jsonl"))
    assert not holds_items(write(tmp_path, [{"messages": []}], "c.jsonl"))
    assert not holds_items(write(tmp_path, [], "d.jsonl"))
    assert not holds_items(write(tmp_path, questions(1), "e.txt"))
    assert not holds_items(tmp_path / "missing.jsonl")


class Pupil:
    """A model over bytes that knows some continuations and finds every other byte as likely as the next."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known
        self.longest = 0

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        rows = []
        for sequence in sequences:
            self.longest = max(self.longest, len(sequence))
            text = bytes(sequence).decode()
            right = next((prompt + answer for prompt, answer in self.known.items() if text.startswith(prompt)), "")
            rows.append(tuple(-0.1 if right[place : place + 1] == text[place] else -3.0 for place in range(1, len(text))))
        return Scores(log_probs=tuple(rows), top_ids=tuple(tuple(sequence[1:]) for sequence in sequences))

    def generate(self, requests: Sequence[GenerationRequest], on_token: None = None) -> list[Generation]:
        found = []
        for request in requests:
            self.longest = max(self.longest, len(request.prompt_ids) + request.max_new_tokens)
            answer = self.known.get(bytes(request.prompt_ids).decode(), " no idea").encode()[: request.max_new_tokens]
            found.append(Generation(token_ids=tuple(answer), timestamps_ns=tuple(range(len(answer))), started_ns=0, finish_reason="length"))
        return found


class Bytes:
    def __init__(self, prefix: str = "") -> None:
        self.prefix = tuple(prefix.encode())

    def encode(self, text: str, special: bool) -> list[int]:
        return [*(self.prefix if special else ()), *text.encode()]

    def question(self, text: str) -> list[int]:
        return self.encode(text, True)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()


def marked(pupil: Pupil, items: Sequence[TaskItem], context: int = 200) -> tuple[tuple[float, ...], int]:
    found = mark(pupil, items, Bytes(), context=context, stop_ids=(), progress=lambda _: None)
    return found.scores, found.shortened


def test_choices_are_marked_by_their_likelihood_and_answers_by_their_words() -> None:
    pupil = Pupil({"The sky is": " blue", "Capital of France?": " It is PARIS, of course.", "1 + 1 =": " 3"})
    items = [
        TaskItem(prompt="The sky is", choices=("green", "blue"), label=1), TaskItem(prompt="The sky is", choices=("blue", "gray"), label=1),
        TaskItem(prompt="Capital of France?", answer="Paris"), TaskItem(prompt="1 + 1 =", answer="2"),
    ]  # fmt: skip
    assert marked(pupil, items) == ((1.0, 0.0, 1.0, 0.0), 0)


def test_prompts_that_are_longer_than_the_context_lose_their_beginning() -> None:
    pupil = Pupil({})
    items = [TaskItem(prompt="x" * 500, choices=("a", "b"), label=0), TaskItem(prompt="y" * 500, answer="z")]
    assert marked(pupil, items, context=100)[1] == 2
    assert pupil.longest <= 100


def test_what_begins_every_text_is_not_cut_away() -> None:
    seen: list[tuple[int, ...]] = []

    class Listening(Pupil):
        def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
            seen.extend(map(tuple, sequences))
            return super().score(sequences)

        def generate(self, requests: Sequence[GenerationRequest], on_token: None = None) -> list[Generation]:
            seen.extend(request.prompt_ids for request in requests)
            return super().generate(requests)

    items = [TaskItem(prompt="x" * 500, choices=("a", "b"), label=0), TaskItem(prompt="y" * 500, answer="z")]
    mark(Listening({}), items, Bytes("^"), context=100, stop_ids=(), progress=lambda _: None)
    assert len(seen) == 3
    assert {bytes(ids).count(b"^") for ids in seen} == {1}
    assert {bytes(ids)[:2] for ids in seen} == {b"^x", b"^y"}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("It is Paris.", "paris", True), ("Parisian", "Paris", False), ("the São Paulo area", "sao paulo", True), ("42", "4", False),
        ("x = -4.5", "-4.5", True), ("yes!", "!", True), ("", "a", False), ("a b c", "b c", True), ("a b d c", "b c", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_where_its_words_stand_in_a_row(text: str, answer: str, right: bool) -> None:
    assert contains(text, answer) is right


def compared(original: Sequence[float], candidate: Sequence[float], bar: float = 0.99) -> Any:
    return compare_scores("t", "acc", original, candidate, bar=bar, seed=0)


def binary(count: int, right: int, lost: int, gained: int) -> tuple[list[float], list[float]]:
    original = [1.0] * right + [0.0] * (count - right)
    candidate = [0.0] * lost + [1.0] * (right - lost) + [1.0] * gained + [0.0] * (count - right - gained)
    return original, candidate


def test_a_few_hundred_equal_answers_do_not_prove_a_percent() -> None:
    found = compared(*binary(200, 120, 0, 0))
    assert found.verdict == "inconclusive"
    assert found.ratio == 1
    assert "it takes about" in found.reason


def test_thousands_of_equal_answers_do() -> None:
    assert compared(*binary(5_000, 4_000, 5, 5)).verdict == "accept"


def test_what_loses_a_lot_is_rejected_on_few_items() -> None:
    found = compared(*binary(200, 150, 60, 2))
    assert found.verdict == "reject"
    assert (found.lost, found.gained) == (60, 2)
    assert found.p_value < 1e-9
    assert "below the bar" in found.reason


def test_scores_that_are_shares_are_resampled() -> None:
    random = np.random.default_rng(0)
    original = random.uniform(0.3, 1, 400)
    assert compared(original, original - 0.1).verdict == "reject"
    assert compared(original, np.minimum(1, original + 0.05)).verdict == "accept"


@pytest.mark.parametrize(
    ("original", "candidate", "reason"),
    [([0.0] * 20, [1.0] * 20, "scores nothing"), ([1.0] * 20, [1.0] * 19, "19 items were scored"), ([], [], "0 items"),
     ([1.0] * 20, [math.nan] * 20, "not a finite")],
)  # fmt: skip
def test_scores_that_cannot_be_compared_say_why(original: list[float], candidate: list[float], reason: str) -> None:
    found = compared(original, candidate)
    assert found.verdict == "anomalous"
    assert reason in found.reason


@given(right=st.integers(20, 300), lost=st.integers(0, 20), gained=st.integers(0, 20))
def test_the_interval_surrounds_the_ratio(right: int, lost: int, gained: int) -> None:
    found = compared(*binary(400, right, lost, gained))
    assert found.ci_low <= found.ratio <= found.ci_high
    assert found.ratio == pytest.approx((right - lost + gained) / right)


def test_a_candidate_at_the_bar_is_accepted_as_rarely_as_promised() -> None:
    """True accuracy 0.8 and 0.792: 2.5 % on either side, with what 300 simulations may deviate."""
    random, ends = np.random.default_rng(0), []
    for _ in range(300):
        original = random.random(2_000) < 0.8
        flips = random.random(2_000)
        candidate = np.where(original, flips > 0.03, flips < 0.03 * 0.8 / 0.2 - 0.008 / 0.2)
        ends.append(compared(original.astype(float), candidate.astype(float)).verdict)
    assert ends.count("accept") / 300 <= 0.055
    assert ends.count("reject") / 300 <= 0.055


def test_the_number_of_items_agrees_with_the_published_table() -> None:
    """At 5 % of the answers changed and an accuracy of 0.80: 4,831 at one-sided 5 %; 7.85/6.18 of that at 2.5 %."""
    assert items_needed(0.8, 0.05, 0.99) == pytest.approx(4_831 * 7.849 / 6.183, rel=0.01)
    assert items_needed(0.8, 0.05, 1.0) > 10**8


def test_one_item_tells_nothing_in_numbers_that_a_report_can_hold() -> None:
    found = compare_scores("summaries", "rouge", [0.4], [0.3], bar=0.99, seed=0)
    assert (found.verdict, found.ci_low, found.ci_high) == ("inconclusive", 0.0, 3.5)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
