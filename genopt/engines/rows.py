"""What every engine keeps of a request under way: its tokens, its times, and why it ended."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from genopt.engines.base import Generation, GenerationRequest, OnToken, TokenLogProbs
from genopt.engines.sampling import Sampler, log_probs
from genopt.errors import SpecError

Logits = NDArray[np.float32]


class Row:
    """One request of a batch.

    Args:
        index: Its place among the requests of the call.
        request: What was asked for.
    """

    def __init__(self, index: int, request: GenerationRequest) -> None:
        self.index = index
        self.request = request
        self.tokens: list[int] = []
        self.finish_reason = ""
        self._sampler = Sampler(request)
        self._times: list[int] = []

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is all that is needed of each step."""
        return self.request.temperature == 0 and self.request.top_logprobs is None

    def take(self, logits: NDArray[np.float32], on_token: OnToken | None) -> None:
        """Chooses the next token from a row of logits, reports it, and notices the end."""
        token, top = self._sampler.choose(logits), self.request.top_logprobs
        self.accept(token, on_token, None if top is None else log_probs(logits, token, top))

    def accept(self, token: int, on_token: OnToken | None, scored: TokenLogProbs | None = None) -> None:
        """Adds a token that was chosen, reports it, and notices the end."""
        if token in self.request.stop_token_ids:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        self._times.append(time.monotonic_ns())
        if on_token is not None and not on_token(self.index, token, scored):
            self.finish_reason = "cancelled"
        elif len(self.tokens) == self.request.max_new_tokens:
            self.finish_reason = "length"

    def generation(self, started_ns: int) -> Generation:
        """The finished request."""
        return Generation(
            token_ids=tuple(self.tokens), timestamps_ns=tuple(self._times), started_ns=started_ns, finish_reason=self.finish_reason
        )  # fmt: skip


def require_fit(ids: Iterable[int], length: int, *, context: int, vocabulary: int) -> None:
    """Refuses token ids that a model cannot take.

    Args:
        ids: The tokens.
        length: Tokens that the model would have to hold.
        context: Tokens that it can hold.
        vocabulary: Number of its token ids.

    Raises:
        SpecError: They are too many, or not in the vocabulary.
    """
    if length > context:
        raise SpecError(f"{length} tokens are more than this session's context of {context}; shorten the prompt or the answer.")
    known = tuple(ids)
    if min(known) < 0 or max(known) >= vocabulary:
        raise SpecError(f"Token ids must lie between 0 and {vocabulary - 1}; use this model's tokenizer.")
