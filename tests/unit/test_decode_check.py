"""A candidate's greedy tokens are held against its own scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from genopt.engines.base import Generation, GenerationRequest, OnToken
from genopt.engines.distribution import Distributions, Wanted
from genopt.quality.decode_check import check_decoding, greedy_regret
from genopt.quality.generation import continuations
from genopt.testing.fake_engine import FakeOptions, FakeSession

PROMPTS = [(1, 2, 3), (4, 5)] * 4
SPACE = ord(" ")


class LoneStreamErrs(FakeSession):
    """Writes something else where there is one stream only."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        found = super().generate(requests, on_token)
        return found if len(found) > 1 else [found[0].model_copy(update={"token_ids": (SPACE,) * len(found[0].token_ids)})]


class GivesNoNumbers(FakeSession):
    """Scores that are none."""

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        found = super().distributions(sequence, wanted)
        return Distributions(found.log_probs * np.nan, found.top_ids, found.ids, found.id_log_probs)


def checked(session: FakeSession) -> tuple[dict[str, object], str | None]:
    facts, problem = check_decoding(session, PROMPTS, continuations(session, PROMPTS, (257,), seed=0).greedy, (257,))
    return dict(facts), problem


def test_tokens_that_the_scores_prefer_regret_nothing() -> None:
    assert checked(FakeSession(FakeOptions())) == ({"greedy_regret": 0.0, "greedy_regret_alone": 0.0}, None)


def test_tokens_that_the_scores_deny_are_named_in_nats() -> None:
    facts, problem = checked(FakeSession(FakeOptions(denies=SPACE)))
    rest = -np.log(257)  # the others share what is left evenly
    assert facts["greedy_regret"] == pytest.approx((20 + rest) / 4, abs=1e-3), "one token in four"
    assert problem is not None
    assert "decodes in a batch other than it scores" in problem
    assert "3.61 nats" in problem


def test_a_single_stream_that_errs_is_named() -> None:
    facts, problem = checked(LoneStreamErrs(FakeOptions(text="abc", denies=SPACE)))
    assert facts["greedy_regret"] == 0
    assert problem is not None
    assert "decodes alone other than it scores" in problem


def test_scores_that_are_no_numbers_are_a_problem_and_no_fact() -> None:
    facts, problem = checked(GivesNoNumbers(FakeOptions()))
    assert facts == {"greedy_regret": None, "greedy_regret_alone": None}
    assert problem is not None


def test_nothing_written_is_nothing_to_regret() -> None:
    assert checked(FakeSession(FakeOptions(stop_after=0))) == ({"greedy_regret": None, "greedy_regret_alone": None}, None)


def test_the_prompt_is_given_and_not_regretted() -> None:
    session = FakeSession(FakeOptions(denies=SPACE))
    assert greedy_regret(session, [(SPACE, SPACE, 97)], [(98, 99)]) == 0
    assert greedy_regret(session, [(SPACE, SPACE, 97)], [(98, SPACE)]) > 7  # type: ignore[operator]


def test_each_written_token_counts_alike() -> None:
    session = FakeSession(FakeOptions(denies=SPACE))
    one = greedy_regret(session, [(97,), (97,)], [(SPACE,), (98, 98, 98)])
    assert one == greedy_regret(session, [(97,)], [(98, SPACE, 98, 98)])
