"""How long made prompts are to whoever counts them."""

from __future__ import annotations

import asyncio

import pytest

from genopt.measure.made_prompts import FIRST_COUNTED, USUAL, Tokenization, made_prompts, tokenization_of

TEMPLATE = 20


def counted(content: str, per_word: float) -> int:
    """A tokenizer that gives each word as many tokens, and a template."""
    return TEMPLATE + round(per_word * len(content.split()))


@pytest.mark.parametrize("per_word", [1.3, 5.8])
@pytest.mark.parametrize("tokens", [64, 512, 4000])
def test_made_prompts_have_the_length_that_was_asked_for(per_word: float, tokens: int) -> None:
    numbers = []

    async def count(prompt: str, number: int) -> int:
        numbers.append(number)
        return counted(prompt, per_word)

    made = made_prompts(tokens, seed=0, tokenization=asyncio.run(tokenization_of(tokens, count, seed=0)))
    assert all(abs(counted(made(index), per_word) - tokens) <= max(per_word, 0.01 * tokens) for index in range(5))
    assert numbers == [FIRST_COUNTED, FIRST_COUNTED + 1, FIRST_COUNTED + 2], "prompts that no request has"


def test_what_is_longer_than_asked_by_its_template_alone_has_one_word() -> None:
    made = made_prompts(10, seed=0, tokenization=Tokenization(tokens_per_word=1.3, around=40))
    assert len(made(0).split("\n\n")[0].split()) == 1


@pytest.mark.parametrize(("told", "asked"), [(None, 1), (9, 3), (30, 3)])
def test_where_nobody_tells_the_usual_is_assumed(told: int | None, asked: int) -> None:
    """Nothing is counted, and then nothing more is asked; the same of every prompt; or what is left of those that are cut."""
    numbers = []

    async def count(prompt: str, number: int) -> int | None:
        numbers.append(number)
        return None if told is None else min(told, counted(prompt, 1.3))

    assert asyncio.run(tokenization_of(100, count, seed=0)) == USUAL
    assert len(numbers) == asked


def test_made_prompts_are_seeded_different_and_about_as_long_as_asked() -> None:
    prompts = made_prompts(100, seed=1)
    made = [prompts(index) for index in range(50)]
    assert made == [made_prompts(100, seed=1)(index) for index in range(50)]
    assert len(set(made)) == 50
    assert made[0] != made_prompts(100, seed=2)(0)
    assert {len(prompt.split()) for prompt in made} == {70 + 6}
