"""The engine replica: one engine process, its tokenizer, and the requests that run on it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Literal

from genopt.engines.base import GenerationRequest, Memory, TokenLogProbs
from genopt.errors import GenoptError, SpecError
from genopt.measure.limits import available_memory
from genopt.process import SessionProcess
from genopt.serving.batching import Batcher, Finish, Scheduler
from genopt.serving.engine_thread import EngineLoad
from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, Admitted, Ask, Event, Piece, Refusal, ScoredToken
from genopt.serving.joining import Joining
from genopt.serving.manifest import ServeArguments
from genopt.serving.metrics import EngineMetrics
from genopt.serving.served_engine import ServedEngine, log_of
from genopt.serving.text import Detokenizer, ModelText, StopScanner

DEFAULT_MAX_TOKENS = 256
DEFAULT_CONTEXT = 4096
"""Where neither the model nor the deployment says how long a prompt with its answer may be."""
_LONG_TEXT = 20_000
MEMORY_SHARE, LEAST_CONTEXT = 0.8, 256
"""Of the node's free memory that keys and values may take, and the context that is served even where that says less."""


_LOGGER = logging.getLogger("ray.serve")


class EngineReplica(ServedEngine):
    """Continues prompts. The engine is warm when the constructor returns.

    Args:
        arguments: What is served.

    Raises:
        GenoptError: The engine refused, failed, died or took too long.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        self._text = ModelText(Path(arguments.model_folder))
        limits = [limit for limit in (arguments.max_context, self._text.context) if limit is not None]
        self._context = min(limits, default=DEFAULT_CONTEXT)
        self._variant = arguments.variant.name
        self._interval_s = arguments.stream_interval_ms / 1000
        session = SessionProcess(
            arguments.variant.engine, Path(arguments.artifact), arguments.variant.options,
            log=log_of(arguments), timeout_s=arguments.call_limit_s, threads=arguments.threads,
            environment=arguments.variables(),
        )  # fmt: skip
        session.open()
        room = _room(session.memory(), arguments)
        if room < self._context:
            _LOGGER.warning("Free memory holds %d tokens of each of %d requests; longer ones are refused.", room, arguments.max_batch)
        self._context = min(self._context, room)
        metrics = EngineMetrics(arguments.variant.name)
        self._scheduler = _scheduler(session, arguments, metrics.note)
        super().__init__(arguments, session, self._scheduler, metrics)

    async def generate(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        request = ENGINE_LOST if self.engine_gone else await self._admit(ask)
        if isinstance(request, Refusal):
            yield request
            return
        yield Admitted(prompt_tokens=len(request.prompt_ids), variant=self._variant)
        try:
            async with aclosing(self._pieces(ask, request)) as pieces:
                async for piece in pieces:
                    yield piece
        except SpecError as error:  # the engine's own limits may be narrower
            yield Refusal(status=400, message=error.message, param="prompt", code="invalid_value")
        except GenoptError:
            yield ENGINE_FAILED

    async def _admit(self, ask: Ask) -> GenerationRequest | Refusal:
        characters = len(ask.prompt or "") + sum(len(message.content) for message in ask.messages or ())
        if self._text.surely_longer(characters, self._context):
            return self._too_long(ask, f"has {characters} characters")
        if ask.messages is not None and len(ask.messages) > self._context:  # also of empty ones each takes a token, and time to render
            return self._too_long(ask, f"has {len(ask.messages)} messages")
        try:
            # Tokenizing a long prompt takes a while, in which other requests go on.
            prompt = await asyncio.to_thread(self._prompt, ask) if characters > _LONG_TEXT else self._prompt(ask)
        except SpecError as error:
            return Refusal(status=400, message=error.message, param=str(error.details.get("param")), code="invalid_value")
        room = self._context - len(prompt)
        if room < 1:
            return self._too_long(ask, f"has {len(prompt)} tokens")
        if ask.max_tokens is not None and ask.max_tokens > room:
            message = f"The prompt's {len(prompt)} tokens and max_tokens={ask.max_tokens} pass the context of {self._context}; ask for {room}."
            return Refusal(status=400, message=message, param="max_tokens", code="context_length_exceeded")
        return GenerationRequest(
            prompt_ids=prompt, stop_token_ids=self._text.stop_token_ids, temperature=ask.temperature, top_p=ask.top_p,
            max_new_tokens=ask.max_tokens or min(DEFAULT_MAX_TOKENS, room), top_logprobs=ask.top_logprobs,
            seed=secrets.randbelow(2**31) if ask.seed is None else ask.seed % 2**31,
        )  # fmt: skip

    def _too_long(self, ask: Ask, how: str) -> Refusal:
        message = f"The prompt {how}, and the model's context is {self._context} tokens with the answer; send a shorter one."
        return Refusal(status=413, message=message, param="prompt" if ask.messages is None else "messages", code="context_length_exceeded")

    def _prompt(self, ask: Ask) -> tuple[int, ...]:
        if ask.messages is not None:
            return self._text.chat_ids(ask.messages)
        if ask.prompt_ids is not None:
            if max(ask.prompt_ids) >= self._text.vocabulary:
                raise SpecError(f"Token ids must be below {self._text.vocabulary}; send ids of this model's tokenizer.", {"param": "prompt"})
            return ask.prompt_ids
        ids = self._text.prompt_ids(ask.prompt or "")
        if not ids:
            raise SpecError("The prompt has no tokens; send some text.", {"param": "prompt"})
        return ids

    async def _pieces(self, ask: Ask, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        detokenizer, scanner = Detokenizer(self._text.tokenizer), StopScanner(ask.stop)
        count, unsent, due = 0, "", 0.0
        scored: list[ScoredToken] = []
        async with aclosing(self._scheduler.generate(request)) as outcomes:
            async for outcome in outcomes:
                if isinstance(outcome, Finish):
                    reason: Literal["stop", "length"] = "length" if outcome.reason == "length" else "stop"
                    yield Piece(text=unsent + scanner.flush(), completion_tokens=count, log_probs=tuple(scored), finish_reason=reason)
                    return
                count += 1
                unsent += scanner.push(detokenizer.push(outcome.id))
                if outcome.log_probs is not None:
                    scored.append(self._scored(outcome.id, outcome.log_probs))
                if scanner.stopped:
                    yield Piece(text=unsent, completion_tokens=count, log_probs=tuple(scored), finish_reason="stop")
                    return
                if ask.incremental and unsent and time.monotonic() >= due:
                    yield Piece(text=unsent, completion_tokens=count, log_probs=tuple(scored))
                    unsent, due = "", time.monotonic() + self._interval_s
                    scored.clear()

    def _scored(self, token: int, log_probs: TokenLogProbs) -> ScoredToken:
        top = tuple((self._text.token_text(one), value) for one, value in log_probs.top)
        return ScoredToken(text=self._text.token_text(token), log_prob=log_probs.log_prob, top=top)


def _room(memory: Memory, arguments: ServeArguments) -> int:
    """Tokens of a prompt with its answer for which there is memory in all places of a batch at once, where the engine tells what one takes.

    On GPUs engines keep to the memory that they reserved.
    """
    if arguments.num_gpus or not memory.kv_bytes_per_token:
        return sys.maxsize
    free = MEMORY_SHARE * available_memory()
    return max(LEAST_CONTEXT, int(free / (memory.kv_bytes_per_token * arguments.max_batch)))


def _scheduler(session: SessionProcess, arguments: ServeArguments, on_change: Callable[[EngineLoad], None]) -> Scheduler:
    if session.joinable(arguments.max_batch):
        return Joining(session, slots=arguments.max_batch, on_change=on_change)
    return Batcher(session, max_batch=arguments.max_batch, wait_s=arguments.batch_wait_ms / 1000, on_change=on_change)
