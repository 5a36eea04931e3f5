"""Continues requests that join and leave between steps, for engines that read prompts and advance rows of a cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from genopt.engines.base import Generation, GenerationRequest, OnToken, RunningBatch, StepOutcome, TokenLogProbs
from genopt.engines.lookahead import Lookahead
from genopt.engines.rows import Logits, Row


class Decoder(Protocol):
    """A cache with rows that advance together, and one sequence beside them whose prompt is being read."""

    chunk: int
    """Prompt tokens that are read at once."""

    def begin(self, rows: int, length: int) -> None:
        """Starts to read a prompt.

        Args:
            rows: Rows that advance meanwhile.
            length: Tokens that the new row or any other will have at its end.
        """

    def read(self, ids: Sequence[int]) -> Logits:
        """Reads the next piece of the prompt; returns the logits after its last token, valid until the next call."""

    def add(self, rows: int) -> None:
        """Makes what was read the row after the first `rows` ones."""

    def step(self, tokens: Sequence[int]) -> Logits:
        """Appends one token to each of the first `len(tokens)` rows and returns their logits, valid until the next call."""

    def drop(self, row: int, rows: int) -> None:
        """Removes one of the first `rows` rows; the last of them takes its place."""


class CheckingDecoder(Decoder, Protocol):
    """One that can append guessed tokens and forget those that were wrong."""

    def check(self, tokens: Sequence[int]) -> Logits:
        """Appends tokens to the first row, the only one, and returns the logits after each, valid until the next call."""

    def keep(self, count: int) -> None:
        """Forgets all but the first `count` tokens of the last `check`."""


class DecodingBatch:
    """See `genopt.engines.base.RunningBatch`.

    Prompts are read in pieces of `Decoder.chunk` tokens, counted from their own beginning, so that what a prompt gives does
    not depend on its company. Between two steps one piece is read, or several short prompts that together
    are no longer.

    Args:
        decoder: Computes; used by this batch alone while it is busy.
        check: Refuses what the model cannot take.
        checking: The same decoder, where a request that is alone is to be continued by guesses, which the model checks: what it says stays
            the same, and takes fewer steps.
        lookahead: Tokens of a guess at most.
    """

    def __init__(
        self, decoder: Decoder, check: Callable[[GenerationRequest], None], *, checking: CheckingDecoder | None = None, lookahead: int = 0
    ) -> None:  # fmt: skip
        self._decoder = decoder
        self._check = check
        self._checking, self._most = checking, lookahead
        self._guesses: Lookahead | None = None
        self._waiting: deque[Row] = deque()
        self._reading: Row | None = None
        self._read = 0
        self._active: list[Row] = []
        self._started: dict[int, int] = {}
        self._left: set[int] = set()
        self._outcome = StepOutcome([], [])

    @property
    def busy(self) -> bool:
        """See `RunningBatch.busy`."""
        return bool(self._waiting or self._reading or self._active)

    def join(self, key: int, request: GenerationRequest) -> None:
        """See `RunningBatch.join`."""
        self._check(request)
        self._started[key] = time.monotonic_ns()
        self._waiting.append(Row(key, request))

    def leave(self, key: int) -> None:
        """See `RunningBatch.leave`."""
        if key in self._started:
            self._left.add(key)

    def step(self) -> StepOutcome:
        """See `RunningBatch.step`."""
        self._outcome = StepOutcome([], [])
        self._let_go()
        guess = self._guess()
        if guess and self._checking is not None:
            self._try(self._checking, guess)
        elif self._active:
            logits = self._decoder.step([row.tokens[-1] for row in self._active])
            for row, values in zip(self._active, logits, strict=True):
                row.take(values, self._note)
        self._drop_ended()
        self._read_prompts()
        return self._outcome

    def _guess(self) -> list[int]:
        """What the only request under way may go on with; nothing where there are others, which would wait for it."""
        if not self._most or len(self._active) != 1 or self._waiting or self._reading is not None:
            self._guesses = None
            return []
        row = self._active[0]
        if self._guesses is None:
            self._guesses = Lookahead(row.request.prompt_ids, self._most)
        self._guesses.extend(row.tokens[len(self._guesses) - len(row.request.prompt_ids) :])
        return self._guesses.guess(row.request.max_new_tokens - len(row.tokens) - 1)

    def _try(self, decoder: CheckingDecoder, guess: Sequence[int]) -> None:
        """Lets the model say what follows each guessed token, and takes its word until a guess was wrong."""
        row = self._active[0]
        logits, taken = decoder.check([row.tokens[-1], *guess]), 0
        for values, guessed in zip(logits, (*guess, None), strict=True):
            row.take(values, self._note)
            taken += 1
            if row.finish_reason or row.tokens[-1] != guessed:
                break
        decoder.keep(taken)
        if self._guesses is not None:
            self._guesses.learn(len(guess), taken - 1)

    def _note(self, key: int, token: int, log_probs: TokenLogProbs | None) -> bool:
        self._outcome.tokens.append((key, token, log_probs))
        return key not in self._left

    def _let_go(self) -> None:
        """Ends the requests whose callers left."""
        if not self._left:
            return
        for row in (*self._waiting, *self._active, *([self._reading] if self._reading is not None else [])):
            if row.index in self._left:
                row.finish_reason = "cancelled"
        self._drop_ended()
        for row in [row for row in self._waiting if row.finish_reason]:
            self._waiting.remove(row)
            self._end(row)
        if self._reading is not None and self._reading.finish_reason:
            self._end(self._reading)
            self._reading = None
        self._left.clear()

    def _drop_ended(self) -> None:
        for place in reversed(range(len(self._active))):
            if self._active[place].finish_reason:
                self._decoder.drop(place, len(self._active))
                self._end(self._active[place])
                last = self._active.pop()
                if place < len(self._active):
                    self._active[place] = last

    def _end(self, row: Row) -> None:
        self._guesses = None
        self._outcome.ended.append((row.index, row.generation(self._started.pop(row.index))))

    def _read_prompts(self) -> None:
        left = self._decoder.chunk
        while self._reading is not None or self._waiting:
            if self._reading is None:
                self._reading, self._read = self._waiting.popleft(), 0
                self._decoder.begin(len(self._active), max(map(_length, (*self._waiting, *self._active, self._reading))))
            row = self._reading
            piece = row.request.prompt_ids[self._read : self._read + self._decoder.chunk]
            if len(piece) > left:
                return
            logits = self._decoder.read(piece)
            left -= len(piece)
            self._read += len(piece)
            if self._read == len(row.request.prompt_ids):
                self._reading = None
                row.take(logits, self._note)
                if row.finish_reason:
                    self._end(row)
                else:
                    self._decoder.add(len(self._active))
                    self._active.append(row)


def _length(row: Row) -> int:
    return len(row.request.prompt_ids) + row.request.max_new_tokens


def generate_together(batch: RunningBatch, requests: Sequence[GenerationRequest], on_token: OnToken | None) -> list[Generation]:
    """Continues requests that come at once, as `TextSession.generate` promises.

    Raises:
        SpecError: The model cannot take one of them; then none is begun.
    """
    for index, request in enumerate(requests):
        batch.join(index, request)
    found: dict[int, Generation] = {}
    while batch.busy:
        outcome = batch.step()
        found.update(outcome.ended)
        for index, token, log_probs in outcome.tokens:
            if on_token is not None and not on_token(index, token, log_probs):
                batch.leave(index)
    return [found[index] for index in range(len(requests))]
