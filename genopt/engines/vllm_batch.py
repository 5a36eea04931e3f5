"""A running batch of vLLM: its scheduler takes requests in between two steps, and reads long prompts in pieces."""

from __future__ import annotations

import contextlib
import itertools
import queue
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from genopt.engines.base import Generation, GenerationRequest, StepOutcome, TokenLogProbs
from genopt.engines.rows import require_fit
from genopt.engines.vllm_loop import EngineLoop
from genopt.errors import StageError

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput


WAIT_S = 0.05
"""Longest time that a step waits."""


class Limits(NamedTuple):
    """What a model can take.

    Attributes:
        context: Tokens of a prompt with its answer.
        vocabulary: Number of token ids.
    """

    context: int
    vocabulary: int


@dataclass(slots=True)
class _Stream:
    request: GenerationRequest
    started_ns: int
    tokens: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    following: Future[None] | None = None

    @property
    def held(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return len(self.request.prompt_ids) + len(self.tokens)

    def generation(self, reason: str) -> Generation:
        return Generation(token_ids=tuple(self.tokens), timestamps_ns=tuple(self.times), started_ns=self.started_ns, finish_reason=reason)


class _Arrival(NamedTuple):
    key: int
    stream: _Stream
    found: CompletionOutput | Exception
    at_ns: int


class VllmBatch:
    """See `genopt.engines.base.RunningBatch`.

    vLLM goes on by itself; a step waits a little for what it says next. That may be nothing, while a long prompt is read, and those who join or leave
    meanwhile must not wait for it.

    Args:
        loop: Where vLLM's engine answers.
        limits: What its model can take.
    """

    def __init__(self, loop: EngineLoop, limits: Limits) -> None:
        self._loop, self._limits = loop, limits
        self._streams: dict[int, _Stream] = {}
        self._left: list[int] = []
        self._arrived: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._names = itertools.count()
        self._most_tokens = 0

    @property
    def most_tokens(self) -> int:
        """Tokens that the requests under way have held together at most, prompts included."""
        return max(self._most_tokens, sum(stream.held for stream in self._streams.values()))

    def _remove(self, key: int) -> _Stream:
        """Notes what is held before less is: between two ends it only grows."""
        self._most_tokens = self.most_tokens
        return self._streams.pop(key)

    @property
    def busy(self) -> bool:
        """See `RunningBatch.busy`."""
        return bool(self._streams)

    def join(self, key: int, request: GenerationRequest) -> None:
        """See `RunningBatch.join`."""
        length = len(request.prompt_ids) + request.max_new_tokens
        require_fit(request.prompt_ids, length, context=self._limits.context, vocabulary=self._limits.vocabulary)
        stream = self._streams[key] = _Stream(request, time.monotonic_ns())
        stream.following = self._loop.begin(self._follow(key, stream, f"answer-{next(self._names)}"))

    async def _follow(self, key: int, stream: _Stream, name: str) -> None:
        """In the loop's thread."""
        asked = stream.request
        try:
            async for output in self._loop.engine.generate({"prompt_token_ids": list(asked.prompt_ids)}, _sampling(asked), name):
                (found,) = output.outputs
                self._arrived.put(_Arrival(key, stream, found, time.monotonic_ns()))
        except Exception as error:  # noqa: BLE001 - raised by the step that waits for it
            self._arrived.put(_Arrival(key, stream, error, time.monotonic_ns()))

    def leave(self, key: int) -> None:
        """See `RunningBatch.leave`."""
        if key in self._streams:
            self._left.append(key)

    def step(self) -> StepOutcome:
        """See `RunningBatch.step`."""
        try:
            return self._step()
        except Exception:
            self.give_up()
            raise

    def _step(self) -> StepOutcome:
        tokens: list[tuple[int, int, TokenLogProbs | None]] = []
        ended: list[tuple[int, Generation]] = []
        for key in dict.fromkeys(self._left):
            if key in self._streams and (stream := self._remove(key)).following is not None:
                stream.following.cancel()
                ended.append((key, stream.generation("cancelled")))
        self._left.clear()
        arrivals = self._next(wait=bool(self._streams) and not ended)
        for arrival in arrivals:
            if self._streams.get(arrival.key) is not arrival.stream:
                continue  # it left before
            if isinstance(arrival.found, Exception):
                self._loop.end_with_process()
                raise StageError("vLLM ended while it continued requests; see the session's log for the cause.") from arrival.found
            tokens += _taken(arrival, arrival.found)
            if arrival.found.finish_reason is not None:
                ended.append((arrival.key, self._ended(arrival.key, arrival.found)))
        return StepOutcome(tokens, ended, waited=not (ended or arrivals))

    def _next(self, *, wait: bool) -> list[_Arrival]:
        """All that arrived; waits a little for the first of it."""
        found: list[_Arrival] = []
        with contextlib.suppress(queue.Empty):
            if wait:
                found.append(self._arrived.get(timeout=WAIT_S))
            while True:
                found.append(self._arrived.get_nowait())
        return found

    def give_up(self) -> None:
        """Cancels all that is under way, so that others can begin."""
        for stream in self._streams.values():
            if stream.following is not None:
                stream.following.cancel()
        self._streams.clear()
        self._left.clear()

    def _ended(self, key: int, found: CompletionOutput) -> Generation:
        if found.finish_reason not in ("stop", "length"):
            raise StageError(f"vLLM ended a request with {found.finish_reason!r}; see the session's log for the cause.")
        return self._remove(key).generation(found.finish_reason)


def _taken(arrival: _Arrival, found: CompletionOutput) -> list[tuple[int, int, TokenLogProbs | None]]:
    """The new tokens of a request, without the one that stopped it."""
    stream = arrival.stream
    top = stream.request.top_logprobs
    new: list[tuple[int, int, TokenLogProbs | None]] = []
    for place, token in enumerate(found.token_ids):
        if token in stream.request.stop_token_ids:
            break
        stream.tokens.append(token)
        stream.times.append(arrival.at_ns)
        new.append((arrival.key, token, None if top is None or found.logprobs is None else _scored(found.logprobs[place], token, top)))
    return new


def _sampling(request: GenerationRequest) -> SamplingParams:
    # Its own stop token is none of ours: only what the request names ends it.
    return SamplingParams(
        temperature=request.temperature, top_p=request.top_p, seed=request.seed, max_tokens=request.max_new_tokens, ignore_eos=True,
        stop_token_ids=list(request.stop_token_ids), detokenize=False, logprobs=request.top_logprobs, output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip


def _scored(found: Mapping[int, Logprob], token: int, top: int) -> TokenLogProbs:
    values = {one: entry.logprob for one, entry in found.items()}
    best = sorted(values.items(), key=lambda pair: -pair[1])[:top]
    return TokenLogProbs(log_prob=min(0.0, values[token]), top=tuple((one, min(0.0, value)) for one, value in best))
