"""What sessions share that see a model's logits: which token ids they take, and how they score texts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.normalizer import Normalizer
from genopt.engines.rows import Logits, require_fit


class LogitsSession(ABC):
    """See `genopt.engines.base.TextSession`; subclasses say how the model is computed.

    Args:
        context: Longest prompt with its answer, in tokens.
        vocabulary: Number of the model's token ids.
        threads: Threads that normalize logits; None takes one per core.
    """

    def __init__(self, *, context: int, vocabulary: int, threads: int | None) -> None:
        self._context, self._vocabulary = context, vocabulary
        self._normalizer = Normalizer(threads or os.cpu_count() or 1)

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._context - 2), max_new_tokens=2)])

    @abstractmethod
    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """

    @abstractmethod
    def memory(self) -> Memory:
        """See `TextSession.memory`."""

    @abstractmethod
    def _read(self, text: Sequence[int]) -> Iterator[Logits]:
        """Reads a text by itself; yields the logits after each of its tokens in pieces, valid until the next one."""

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence) - 1)
        return Scores.of([self._distributions(sequence, 0) for sequence in sequences])

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`.

        Raises:
            SpecError: The sequence is longer than the context, or has ids outside of the vocabulary.
        """
        self._check(sequence, len(sequence) - 1)
        if not isinstance(wanted, int):
            require_rows(wanted, len(sequence))
        return self._distributions(sequence, wanted)

    def _distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        return self._normalizer.text(self._read(sequence[:-1]), sequence[1:], wanted)

    def _check_request(self, request: GenerationRequest) -> None:
        self._check(request.prompt_ids, len(request.prompt_ids) + request.max_new_tokens)

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._context, vocabulary=self._vocabulary)

    def close(self) -> None:
        """See `TextSession.close`."""
        self._normalizer.close()
