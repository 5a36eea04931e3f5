"""A running batch over a toy decoder: whoever joins or leaves when, each sequence is the one it would be alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.engines.base import Generation, GenerationRequest
from genopt.engines.decoding import DecodingBatch, generate_together
from genopt.engines.lookahead import Lookahead
from genopt.engines.rows import Logits
from genopt.errors import SpecError

VOCABULARY, SLOTS, CHUNK = 17, 3, 4
STOP = 3


class Toy:
    """A `Decoder` whose next token follows from all before it."""

    chunk = CHUNK

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.prompt: list[int] = []
        self.room = 0
        self.log: list[str] = []
        self.checked: list[int] = []

    def begin(self, rows: int, length: int) -> None:
        assert rows == len(self.rows) < SLOTS
        self.prompt, self.room = [], length

    def read(self, ids: Sequence[int]) -> Logits:
        assert 0 < len(ids) <= CHUNK
        self.log.append("r" * len(ids))
        self.prompt += ids
        return _logits(self.prompt)

    def add(self, rows: int) -> None:
        assert rows == len(self.rows)
        self.rows.append(self.prompt)

    def step(self, tokens: Sequence[int]) -> Logits:
        assert len(tokens) == len(self.rows)
        self.log.append("s")
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
            assert len(row) <= self.room
        return np.stack([_logits(row) for row in self.rows])

    def check(self, tokens: Sequence[int]) -> Logits:
        assert len(self.rows) == 1
        self.log.append("c" * len(tokens))
        self.checked = [*self.rows[0], *tokens]
        assert len(self.checked) <= self.room
        return np.stack([_logits(self.checked[: len(self.rows[0]) + count]) for count in range(1, len(tokens) + 1)])

    def keep(self, count: int) -> None:
        self.rows[0] = self.checked[: len(self.rows[0]) + count]

    def drop(self, row: int, rows: int) -> None:
        assert rows == len(self.rows)
        self.rows[row] = self.rows[-1]
        self.rows.pop()


def _next(ids: Sequence[int]) -> int:
    return (7 * sum(ids) + 3 * len(ids) + ids[-1]) % VOCABULARY


def _logits(ids: Sequence[int]) -> Logits:
    found = np.zeros(VOCABULARY, np.float32)
    found[_next(ids)] = 1
    return found


def alone(request: GenerationRequest) -> tuple[list[int], str]:
    ids, found = list(request.prompt_ids), []
    while len(found) < request.max_new_tokens:
        token = _next(ids)
        if token in request.stop_token_ids:
            return found, "stop"
        ids.append(token)
        found.append(token)
    return found, "length"


def check(request: GenerationRequest) -> None:
    if max(request.prompt_ids) >= VOCABULARY:
        raise SpecError("Too large; send less.")


REQUESTS = st.builds(
    GenerationRequest, prompt_ids=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=11).map(tuple), max_new_tokens=st.integers(1, 12),
    stop_token_ids=st.sampled_from([(), (STOP,)]),
)  # fmt: skip


@given(st.lists(st.tuples(REQUESTS, st.integers(0, 6), st.none() | st.integers(0, 8)), min_size=1, max_size=8), st.integers(0, 5))
def test_each_sequence_is_the_one_it_would_be_alone(arrivals: list[tuple[GenerationRequest, int, int | None]], lookahead: int) -> None:
    """Each arrival is a request, the steps before it comes, and the steps after which its caller leaves."""
    decoder = Toy()
    batch = DecodingBatch(decoder, check, checking=decoder, lookahead=lookahead)
    found: dict[int, Generation] = {}
    streamed: dict[int, list[int]] = {key: [] for key in range(len(arrivals))}
    waiting, leaving = list(enumerate(arrivals)), dict[int, int]()
    pause = waiting[0][1][1]
    for _ in range(400):
        while waiting and len(streamed) - len(waiting) - len(found) < SLOTS and pause <= 0:
            key, (request, _, patience) = waiting.pop(0)
            batch.join(key, request)
            if patience is not None:
                leaving[key] = patience
            pause = waiting[0][1][1] if waiting else 0
        pause -= 1
        outcome = batch.step()
        for key, token, _ in outcome.tokens:
            streamed[key].append(token)
        found.update(outcome.ended)
        for key in list(leaving):
            leaving[key] -= 1
            if leaving[key] < 0:
                batch.leave(key)
                del leaving[key]
    assert not batch.busy
    assert decoder.rows == []
    for key, (request, _, patience) in enumerate(arrivals):
        tokens, reason = alone(request)
        assert list(found[key].token_ids) == streamed[key]
        if found[key].finish_reason == "cancelled":
            assert patience is not None
            assert streamed[key] == tokens[: len(streamed[key])]
        else:
            assert (streamed[key], found[key].finish_reason) == (tokens, reason)


def test_a_long_prompt_is_read_between_the_others_tokens_and_short_ones_together() -> None:
    decoder = Toy()
    batch = DecodingBatch(decoder, check)
    batch.join(0, GenerationRequest(prompt_ids=(1,), max_new_tokens=9))
    batch.step()
    batch.join(1, GenerationRequest(prompt_ids=(1,) * 10, max_new_tokens=2))
    batch.join(2, GenerationRequest(prompt_ids=(2, 2), max_new_tokens=2))
    while batch.busy:
        batch.step()
    assert "".join(decoder.log).startswith("r" + "s" + "rrrr" + "s" + "rrrr" + "s" + "rr" + "rr" + "s")


def test_what_cannot_join_changes_nothing_and_requests_at_once_come_in_order() -> None:
    batch = DecodingBatch(Toy(), check)
    bad, good = (GenerationRequest(prompt_ids=(start,), max_new_tokens=3) for start in (VOCABULARY, 1))
    with pytest.raises(SpecError):
        batch.join(0, bad)
    assert not batch.busy
    others = [good, good.model_copy(update={"prompt_ids": (5, 6)})]
    assert [list(found.token_ids) for found in generate_together(batch, others, None)] == [alone(request)[0] for request in others]


class Counting(Toy):
    """Says one number after the other, over and over."""

    def read(self, ids: Sequence[int]) -> Logits:
        super().read(ids)
        return _after(self.prompt)

    def step(self, tokens: Sequence[int]) -> Logits:
        super().step(tokens)
        return np.stack([_after(row) for row in self.rows])

    def check(self, tokens: Sequence[int]) -> Logits:
        super().check(tokens)
        return np.stack([_after([token]) for token in tokens])


def _after(ids: Sequence[int]) -> Logits:
    found = np.zeros(VOCABULARY, np.float32)
    found[(ids[-1] + 1) % 5] = 1
    return found


def test_who_repeats_himself_alone_needs_few_steps_and_in_company_as_many_as_others() -> None:
    request = GenerationRequest(prompt_ids=(0, 1, 2, 3, 4), max_new_tokens=24)
    said = tuple(place % 5 for place in range(24))
    decoder = Counting()
    (found,) = generate_together(DecodingBatch(decoder, check, checking=decoder, lookahead=4), [request], None)
    assert found.token_ids == said
    assert "".join(decoder.log).count("s") + sum(entry.startswith("c") for entry in decoder.log) <= 7
    assert len(found.timestamps_ns) == 24
    decoder = Counting()
    batch = DecodingBatch(decoder, check, checking=decoder, lookahead=4)
    both = generate_together(batch, [request, request], None)
    assert [one.token_ids for one in both] == [said, said]
    assert not [entry for entry in decoder.log[:-1] if entry.startswith("c")], "nobody waits for what another guesses"


def test_a_guess_is_what_followed_the_same_tokens_last_and_as_long_as_guesses_were_right() -> None:
    guesses = Lookahead((1, 2, 3, 9, 1, 2, 4, 8, 8, 1, 2), 3)
    assert guesses.guess(5) == [4, 8, 8]
    assert guesses.guess(1) == [4]
    guesses.learn(3, 0)
    assert guesses.guess(5) == [4, 8]
    guesses.learn(2, 2)
    assert guesses.guess(5) == [4, 8, 8]
    guesses.extend((3,))
    assert guesses.guess(5) == [9, 1, 2], "where no three tokens came before, two or one will do"
    guesses.extend((7,))
    assert guesses.guess(5) == []
    assert len(guesses) == 13
