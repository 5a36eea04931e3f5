"""A running batch of vLLM: its scheduler takes requests in between two steps, and reads long prompts in pieces."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from genopt.engines.base import Generation, GenerationRequest, StepOutcome, TokenLogProbs
from genopt.engines.rows import require_fit
from genopt.errors import StageError

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.llm_engine import LLMEngine


class Limits(NamedTuple):
    """What a model can take.

    Attributes:
        context: Tokens of a prompt with its answer.
        vocabulary: Number of token ids.
    """

    context: int
    vocabulary: int


class _Stream(NamedTuple):
    request: GenerationRequest
    started_ns: int
    tokens: list[int]
    times: list[int]

    def generation(self, reason: str) -> Generation:
        return Generation(token_ids=tuple(self.tokens), timestamps_ns=tuple(self.times), started_ns=self.started_ns, finish_reason=reason)


class VllmBatch:
    """See `genopt.engines.base.RunningBatch`.

    Args:
        engine: vLLM's, in this process.
        limits: What its model can take.
    """

    def __init__(self, engine: LLMEngine, limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        self._streams: dict[int, _Stream] = {}
        self._left: list[int] = []

    @property
    def busy(self) -> bool:
        """See `RunningBatch.busy`."""
        return bool(self._streams)

    def join(self, key: int, request: GenerationRequest) -> None:
        """See `RunningBatch.join`."""
        length = len(request.prompt_ids) + request.max_new_tokens
        require_fit(request.prompt_ids, length, context=self._limits.context, vocabulary=self._limits.vocabulary)
        self._streams[key] = _Stream(request, time.monotonic_ns(), [], [])
        self._engine.add_request(str(key), {"prompt_token_ids": list(request.prompt_ids)}, _sampling(request))

    def leave(self, key: int) -> None:
        """See `RunningBatch.leave`."""
        if key in self._streams:
            self._left.append(key)

    def step(self) -> StepOutcome:
        """See `RunningBatch.step`."""
        tokens: list[tuple[int, int, TokenLogProbs | None]] = []
        ended = [(key, self._streams.pop(key).generation("cancelled")) for key in dict.fromkeys(self._left) if key in self._streams]
        self._left.clear()
        if ended:
            self._engine.abort_request([str(key) for key, _ in ended])
        for output in self._engine.step() if self._streams else ():
            key = int(output.request_id)
            if key in self._streams:
                (found,) = output.outputs
                tokens += self._taken(key, found)
                if found.finish_reason is not None:
                    ended.append((key, self._ended(key, found)))
        return StepOutcome(tokens, ended)

    def _taken(self, key: int, found: CompletionOutput) -> list[tuple[int, int, TokenLogProbs | None]]:
        """The new tokens of a request, without the one that stopped it."""
        stream, now = self._streams[key], time.monotonic_ns()
        top = stream.request.top_logprobs
        new = []
        for place, token in enumerate(found.token_ids):
            if token in stream.request.stop_token_ids:
                break
            stream.tokens.append(token)
            stream.times.append(now)
            new.append((key, token, None if top is None or found.logprobs is None else _scored(found.logprobs[place], token, top)))
        return new

    def _ended(self, key: int, found: CompletionOutput) -> Generation:
        if found.finish_reason not in ("stop", "length"):
            raise StageError(f"vLLM ended a request with {found.finish_reason!r}; see the session's log for the cause.")
        return self._streams.pop(key).generation(found.finish_reason)


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
