"""Guesses the next tokens of a text from what followed the same tokens before in it, and how many are worth a guess.

Prompt lookup decoding (Saxena 2023, https://github.com/apoorvumang/prompt-lookup-decoding): a model that repeats itself or its prompt
says several tokens per step, since checking some tokens reads the weights once, as computing one does.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 3
"""Tokens that have to be the same at most; where no three are, two or one will do."""


class Lookahead:
    """The guesses for one text.

    Args:
        tokens: The text so far.
        most: Tokens of a guess at most.
    """

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._most = self._worth = most
        self.extend(tokens)

    def __len__(self) -> int:
        """Tokens of the text."""
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds what the text goes on with."""
        for token in tokens:
            place = len(self._tokens)
            for length in range(1, min(LONGEST, place) + 1):
                self._follows[tuple(self._tokens[place - length :])] = place
            self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """What may come next, at most so many tokens; nothing where the text's last token is new in it."""
        most = min(most, self._worth)
        if most < 1:
            return []
        for length in range(min(LONGEST, len(self._tokens)), 0, -1):
            place = self._follows.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._tokens[place : place + most]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Makes later guesses longer where a whole one was right, else shorter: each guessed token costs, right or not.

        Args:
            guessed: Tokens of the guess.
            right: How many of them came.
        """
        if right == guessed == self._worth:
            self._worth = min(self._most, self._worth + 2)
        elif right < guessed:
            self._worth = max(1, self._worth - 1)
