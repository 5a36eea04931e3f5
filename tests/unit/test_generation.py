"""What a candidate writes is held against the original's: length, repetition, its end and whether it is text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.quality.generation import Continuation, Continuations, check, continuations, is_text, repetition
from genopt.testing.fake_engine import FakeOptions, FakeSession

PROMPTS = [(1, 2, 3)] * 8


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def written(**options: object) -> Continuations:
    return continuations(FakeSession(FakeOptions.model_validate(options)), PROMPTS, (257,), seed=0)


def made(texts: Sequence[bytes], ended: Sequence[bool] | None = None) -> Continuations:
    rows = tuple(Continuation(token_ids=tuple(text), ended=end) for text, end in zip(texts, ended or [False] * len(texts), strict=True))
    return Continuations(greedy=rows, sampled=rows)


SENTENCE = b"The quick brown fox jumps over it all."
ORIGINAL = made([SENTENCE] * 8)


def test_the_same_text_passes() -> None:
    facts, problem = check(written(), written(), decode)
    assert problem is None
    assert (facts["length_share"], facts["same_greedy_tokens"], facts["continuations"]) == (1.0, 1.0, 16)


def test_output_that_breaks_off_is_named() -> None:
    facts, problem = check(written(), written(stop_after=24), decode)
    assert problem is not None
    assert "75% of the original's length" in problem
    assert facts["length_share"] == pytest.approx(0.75)


def test_a_little_less_is_no_problem() -> None:
    assert check(written(), written(stop_after=30), decode)[1] is None


def test_one_short_answer_among_many_is_chance() -> None:
    candidate = made([SENTENCE] * 7 + [SENTENCE[:2]])
    facts, problem = check(ORIGINAL, candidate, decode)
    assert float(str(facts["length_share"])) < 0.9
    assert problem is None


def test_nothing_at_all_is_named() -> None:
    assert "0% of the original's length" in str(check(written(), written(stop_after=0), decode)[1])


def test_an_original_that_writes_nothing_cannot_be_compared() -> None:
    facts, problem = check(written(stop_after=0), written(stop_after=0), decode)
    assert problem is None
    assert facts["length_share"] is None
    assert facts["same_greedy_tokens"] is None


def test_loops_are_named() -> None:
    facts, problem = check(ORIGINAL, made([b"abcd" * 9] * 8), decode)
    assert problem is not None
    assert "repeats itself" in problem
    assert float(str(facts["repetition"])) > 0.8


def test_running_on_is_named() -> None:
    original = made([SENTENCE] * 8, [True] * 6 + [False] * 2)
    facts, problem = check(original, ORIGINAL, decode)
    assert problem is not None
    assert "0 of 16 continuations ended by themselves, 12 of the original's" in problem
    assert (facts["ended"], facts["ended_original"]) == (0.0, 0.75)


def test_invalid_utf8_is_named() -> None:
    broken = SENTENCE.replace(b"quick", b"qu\xffck")
    _, problem = check(ORIGINAL, made([broken] * 4 + [SENTENCE] * 4), decode)
    assert problem is not None
    assert "8 of 16 continuations are not valid UTF-8" in problem


def test_an_original_that_does_the_same_excuses_everything() -> None:
    odd = made([b"abcd" * 9] * 4 + [b"\xffab"] * 4)
    assert check(odd, odd, decode)[1] is None


def test_a_character_cut_off_at_the_end_is_text() -> None:
    assert is_text("naïve ü".encode()[:-1], decode)
    assert not is_text(b"\xff and more", decode)


@given(ids=st.lists(st.integers(0, 3), max_size=30))
def test_repetition_is_a_share(ids: list[int]) -> None:
    assert 0 <= repetition(ids) < 1
    if len(ids) >= 4:
        assert repetition(ids + ids) >= (len(ids) - 3) / (2 * len(ids) - 3) - 1e-9, "at least what is said again"


def test_sampling_is_repeatable_and_its_requests_have_seeds_of_their_own() -> None:
    assert written() == written()
