"""An engine without a model or library: it continues every prompt with the bytes of a text, over and over."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores, StepOutcome, TokenLogProbs
from genopt.engines.decoding import generate_together
from genopt.engines.distribution import Distributions, Wanted
from genopt.errors import InfeasibleError, SpecError
from genopt.plan import JsonValue, Record
from genopt.search.space import Tunable

VOCABULARY = 258
"""Bytes and two special tokens, as in `genopt.testing.tiny_tokenizer`."""
DENIED_NATS = 20.0
"""What a token that is denied loses."""


class FakeOptions(Record):
    """Options of the fake engine.

    Attributes:
        text: Its UTF-8 bytes are the token ids, as in `genopt.testing.tiny_tokenizer`.
        delay_ms: Time per step; all requests of a batch step together.
        stop_after: Tokens after which a sequence stops by itself; None continues to its limit.
        crash_token: A prompt with this token ends the process.
        crash: Every request ends the process.
        loss: Nats that each token's log-probability loses, a little more or less from token to token.
        denies: A token that it writes where its text has it, and scores as hardly possible.
        open_s: Time that opening takes.
        needs_gpu: Refuses to open, as an engine does that lacks its hardware.
        broken: Fails while it opens, as a compiler does that cannot take a model.
        threads: Ignored.
    """

    text: str = Field(default="abc ", min_length=1)
    delay_ms: float = Field(default=0.0, ge=0)
    stop_after: int | None = Field(default=None, ge=0)
    crash_token: int | None = None
    crash: bool = False
    loss: float = Field(default=0.0, ge=0)
    denies: int | None = None
    open_s: float = Field(default=0.0, ge=0)
    needs_gpu: bool = False
    broken: bool = False
    threads: int | None = Field(default=None, gt=0)


class _Sequence:
    """A request under way."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.tokens: list[int] = []
        self.times: list[int] = []
        self.started_ns = time.monotonic_ns()
        self.reason = ""

    def notice_end(self, stop_after: int | None) -> None:
        if not self.reason and len(self.tokens) == stop_after:
            self.reason = "stop"
        elif not self.reason and len(self.tokens) == self.request.max_new_tokens:
            self.reason = "length"

    def generation(self) -> Generation:
        return Generation(token_ids=tuple(self.tokens), timestamps_ns=tuple(self.times), started_ns=self.started_ns, finish_reason=self.reason)


class FakeBatch:
    """See `genopt.engines.base.RunningBatch`.

    Args:
        options: What it writes and how fast.
    """

    def __init__(self, options: FakeOptions) -> None:
        self._options = options
        self._pattern = options.text.encode()
        self._sequences: dict[int, _Sequence] = {}

    @property
    def busy(self) -> bool:
        """See `RunningBatch.busy`."""
        return bool(self._sequences)

    def join(self, key: int, request: GenerationRequest) -> None:
        """See `RunningBatch.join`."""
        if self._options.crash or self._options.crash_token in request.prompt_ids:
            os._exit(1)
        if max(request.prompt_ids) >= VOCABULARY:
            raise SpecError(f"Token ids must be below {VOCABULARY}; use the tiny tokenizer.")
        self._sequences[key] = _Sequence(request)

    def leave(self, key: int) -> None:
        """See `RunningBatch.leave`."""
        if key in self._sequences:
            self._sequences[key].reason = "cancelled"

    def step(self) -> StepOutcome:
        """See `RunningBatch.step`."""
        outcome = StepOutcome([], [])
        for sequence in self._sequences.values():
            sequence.notice_end(self._options.stop_after)
        going = {key: sequence for key, sequence in self._sequences.items() if not sequence.reason}
        if going:
            time.sleep(self._options.delay_ms / 1000)
        for key, sequence in going.items():
            token = self._pattern[len(sequence.tokens) % len(self._pattern)]
            sequence.tokens.append(token)
            sequence.times.append(time.monotonic_ns())
            outcome.tokens.append((key, token, _certain(token, sequence.request.top_logprobs)))
            sequence.notice_end(self._options.stop_after)
        for key in [key for key, sequence in self._sequences.items() if sequence.reason]:
            outcome.ended.append((key, self._sequences.pop(key).generation()))
        return outcome


class FakeSession:
    """A `TextSession` that computes nothing.

    Args:
        options: What it writes and how fast.
    """

    def __init__(self, options: FakeOptions) -> None:
        self._options = options

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`."""
        return generate_together(self.running_batch(len(requests)), requests, on_token)

    def running_batch(self, slots: int) -> FakeBatch:
        """See `Joinable.running_batch`."""
        return FakeBatch(self._options)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """Each next token was certain, but for the `loss`, and for one that is denied."""
        return Scores(
            log_probs=tuple(tuple(self._log_prob(token) for token in sequence[1:]) for sequence in sequences),
            top_ids=tuple(tuple(self._expected(token) for token in sequence[1:]) for sequence in sequences),
        )

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """What the next token leaves of the probability is spread evenly over all other bytes."""
        (log_probs,), (expected,) = self.score([sequence]).log_probs, self.score([sequence]).top_ids
        own, targets, tops = np.array(log_probs, np.float32), np.array(sequence[1:], np.int32), np.array(expected, np.int32)
        rest = np.log(np.maximum(-np.expm1(own), 1e-30) / (VOCABULARY - 1)).astype(np.float32)
        if isinstance(wanted, int):
            others = np.array([[byte for byte in range(VOCABULARY) if byte != top] for top in expected], np.int32)
            wanted = np.concatenate([tops[:, None], others], axis=1)[:, :wanted]
        return Distributions(own, tops, wanted, np.where(wanted == targets[:, None], own[:, None], rest[:, None]).astype(np.float32))

    def _log_prob(self, token: int) -> float:
        return -DENIED_NATS if token == self._options.denies else -self._options.loss * (0.5 + (token % 16) / 15)

    def _expected(self, token: int) -> int:
        return token - 1 if token == self._options.denies else token

    def memory(self) -> Memory:
        """Nothing is held."""
        return Memory(rss_bytes=0, peak_rss_bytes=0)

    def close(self) -> None:
        """Nothing is held."""


def _certain(token: int, top: int | None) -> TokenLogProbs | None:
    """All probability is on the token that the text dictates."""
    return None if top is None else TokenLogProbs(log_prob=0.0, top=((token, 0.0),)[:top])


class FakeEngine:
    """See `genopt.engines.base.Engine`."""

    name = "fake"
    modality = "text"
    accepts = frozenset({"hf"})
    tunables = (
        Tunable(name="delay_ms", choices=(1, 3), words=("delay-1", "delay-3")),
        Tunable(name="loss", choices=(0.0, 0.05), words=("loss-0.0", "loss-0.05")),
    )
    environment: str | None = None
    layer_overhead_s = 1e-3

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        try:
            found = FakeOptions.model_validate(options)
        except ValidationError as error:
            raise SpecError(f"Bad options of the fake engine ({error.errors()[0]['msg']}); see FakeOptions.") from None
        if found.needs_gpu:
            raise InfeasibleError("The fake engine was told that it needs a GPU; leave needs_gpu out.")

    @staticmethod
    def prepare() -> None:
        """Needs nothing; says so."""
        print("prepared", flush=True)

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> FakeSession:
        """See `Engine.open`."""
        found = FakeOptions.model_validate(options)
        time.sleep(found.open_s)
        if found.broken:
            raise RuntimeError("cannot compile this model")
        return FakeSession(found)
