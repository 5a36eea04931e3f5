from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.engines.base import GenerationRequest
from genopt.engines.sampling import Sampler, log_probs, nucleus
from genopt.errors import StageError


def request(**values: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"prompt_ids": (1,), "max_new_tokens": 1, **values})


@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=60),
    top_p=st.floats(0.01, 1.0),
)
def test_nucleus_is_the_smallest_set_with_the_mass(logits: list[float], top_p: float) -> None:
    probabilities = np.exp(np.array(logits))
    probabilities /= probabilities.sum()
    found = nucleus(probabilities, top_p)
    assert len(set(found.tolist())) == len(found)
    kept = probabilities[found]
    assert kept.sum() >= top_p - 1e-9
    if top_p < 1:
        assert kept[:-1].sum() < top_p
        rest = np.delete(probabilities, found)
        assert rest.size == 0 or rest.max() <= kept.min()


def test_greedy_takes_the_highest() -> None:
    assert Sampler(request()).choose(np.array([0.1, 3.0, 2.9], np.float32)) == 1


def test_samples_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(request(temperature=1.0, seed=3))
    drawn = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4) / 4000
    assert drawn == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_top_p_cuts_the_tail_and_nothing_else() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(request(temperature=1.0, top_p=0.7, seed=3))
    drawn = np.bincount([sampler.choose(logits) for _ in range(4000)], minlength=4) / 4000
    assert drawn == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


def test_low_temperature_is_nearly_greedy() -> None:
    sampler = Sampler(request(temperature=0.01))
    assert {sampler.choose(np.array([1.0, 1.2, 0.9], np.float32)) for _ in range(50)} == {1}


def test_seed_decides() -> None:
    logits = np.zeros(1000, np.float32)
    one, same, other = (Sampler(request(temperature=1.0, seed=seed)) for seed in (5, 5, 6))
    draws = [[sampler.choose(logits) for _ in range(8)] for sampler in (one, same, other)]
    assert draws[0] == draws[1] != draws[2]


@given(logits=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60), top=st.integers(0, 20))
def test_log_probabilities_are_normalized_and_ranked(logits: list[float], top: int) -> None:
    values = np.array(logits, np.float32)
    found = log_probs(values, 0, top)
    everything = [log_probs(values, token, 0).log_prob for token in range(len(values))]
    assert np.exp(everything).sum() == pytest.approx(1)
    assert found.log_prob == everything[0]
    assert [value for _, value in found.top] == sorted(everything, reverse=True)[:top]
    assert all(everything[token] == value for token, value in found.top)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_named_instead_of_chosen(wrong: float, temperature: float) -> None:
    with pytest.raises(StageError, match="no numbers"):
        Sampler(request(temperature=temperature)).choose(np.array([0.1, wrong, 2.9], np.float32))
    assert Sampler(request(temperature=temperature)).choose(np.array([-np.inf, 3.0, -np.inf], np.float32)) == 1
