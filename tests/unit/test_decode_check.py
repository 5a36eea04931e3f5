"""A candidate's greedy tokens are held against its own scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from genopt.engines.base import Generation, GenerationRequest, OnToken
from genopt.engines.distribution import Distributions, Wanted
from genopt.quality.decode_check import check_decoding, greedy_regret
from genopt.quality.generation import Continuation, continuations
from genopt.testing.fake_engine import FakeOptions, FakeSession

PROMPTS = [(1, 2, 3), (4, 5)] * 4
SPACE = ord(" ")
STOP = 257


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


class LoneStreamEnds(FakeSession):
    """Ends at once where there is one stream only."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        found = super().generate(requests, on_token)
        return found if len(found) > 1 else [found[0].model_copy(update={"token_ids": (), "finish_reason": "stop"})]


def regret_of(session: FakeSession, prompt: tuple[int, ...], written: tuple[int, ...]) -> float:
    found = greedy_regret(session, [prompt], [Continuation(token_ids=written, ended=False)], ())
    assert found is not None
    return found


def checked(session: FakeSession) -> tuple[dict[str, object], str | None]:
    facts, problem = check_decoding(session, PROMPTS, continuations(session, PROMPTS, (STOP,), seed=0).greedy, (STOP,))
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


def test_a_single_stream_that_ends_where_its_scores_go_on_is_named() -> None:
    facts, problem = checked(LoneStreamEnds(FakeOptions(text="abc", denies=STOP)))
    assert facts["greedy_regret"] == 0
    assert problem is not None
    assert "decodes alone other than it scores" in problem


def test_an_answer_ends_with_the_likeliest_token_that_ends_one() -> None:
    session, ended = FakeSession(FakeOptions(denies=STOP)), [Continuation(token_ids=(97,), ended=True)]
    assert greedy_regret(session, [(97,)], ended, (STOP, 98)) == 0
    assert greedy_regret(session, [(97,)], ended, (STOP,)) == pytest.approx((20 - np.log(257)) / 2, abs=1e-3)


def test_where_nothing_was_chosen_there_is_nothing_to_regret() -> None:
    assert greedy_regret(FakeSession(FakeOptions()), [(97,)], [Continuation(token_ids=(), ended=False)], (STOP,)) is None


def test_the_prompt_is_given_and_not_regretted() -> None:
    session = FakeSession(FakeOptions(denies=SPACE))
    assert regret_of(session, (SPACE, SPACE, 97), (98, 99)) == 0
    assert regret_of(session, (SPACE, SPACE, 97), (98, SPACE)) > 7


def test_each_written_token_counts_alike() -> None:
    session = FakeSession(FakeOptions(denies=SPACE))
    two = [Continuation(token_ids=ids, ended=False) for ids in ((SPACE,), (98, 98, 98))]
    assert greedy_regret(session, [(97,), (97,)], two, ()) == regret_of(session, (97,), (98, SPACE, 98, 98))
