"""The engine replica: one engine process, its tokenizer, and the batches that run on it."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from genopt.engines.base import Generation, GenerationRequest
from genopt.errors import GenoptError, SpecError
from genopt.process import SessionProcess
from genopt.serving.batching import Batcher
from genopt.serving.exchange import Admitted, Ask, Event, Piece, Refusal
from genopt.serving.manifest import ServeArguments
from genopt.serving.text import Detokenizer, ModelText, StopScanner

DEFAULT_MAX_TOKENS = 256


class EngineReplica:
    """Continues prompts. The engine is warm when the constructor returns.

    Args:
        arguments: What is served.

    Raises:
        GenoptError: The engine refused, failed, died or took too long.
    """

    def __init__(self, arguments: ServeArguments) -> None:
        self._text = ModelText(Path(arguments.model_folder))
        limits = [limit for limit in (arguments.max_context, self._text.context) if limit is not None]
        self._context = min(limits) if limits else None
        self._stall_s = arguments.stall_s
        self._batch_sizes: dict[int, int] = {}
        folder = Path(arguments.log_folder or tempfile.gettempdir())
        session = SessionProcess(
            arguments.variant.engine, Path(arguments.artifact), arguments.variant.options,
            log=folder / f"serve-{arguments.variant.name}-{os.getpid()}.log", timeout_s=arguments.call_limit_s, threads=arguments.threads,
            environment={} if arguments.num_gpus else {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        self._batcher = Batcher(
            session.open(), max_batch=arguments.max_batch, wait_s=arguments.batch_wait_ms / 1000, on_batch=self._count_batch
        )  # fmt: skip

    def _count_batch(self, size: int) -> None:
        self._batch_sizes[size] = self._batch_sizes.get(size, 0) + 1

    async def ready(self) -> bool:
        """Answers, which is all that readiness asks: the constructor opened and warmed the engine."""
        return True

    async def batch_sizes(self) -> dict[int, int]:
        """How many batches of each size were started."""
        return dict(self._batch_sizes)

    async def check_health(self) -> None:
        """Called by Serve; raising lets it replace this replica.

        Raises:
            GenoptError: The engine's process is dead or does not advance.
        """
        await self._batcher.check(self._stall_s)

    def __del__(self) -> None:
        # Serve calls this when it stops a replica; it also runs when the constructor failed before there was a batcher.
        if "_batcher" in vars(self):
            self._batcher.close()

    async def generate(self, ask: Ask) -> AsyncIterator[Event]:
        """See `EngineCalls.generate`. Closing the iterator cancels the request."""
        request = self._admit(ask)
        if isinstance(request, Refusal):
            yield request
            return
        yield Admitted(prompt_tokens=len(request.prompt_ids))
        try:
            async for piece in self._pieces(ask, request):
                yield piece
        except GenoptError:
            # The cause is in the replica's and the engine's logs; it may name paths that are no caller's business.
            yield Refusal(status=503, message="The engine failed; try again.", code="engine_failed", retry_after_s=5)

    def _admit(self, ask: Ask) -> GenerationRequest | Refusal:
        try:
            prompt = self._prompt(ask)
        except SpecError as error:
            return Refusal(status=400, message=error.message, param=str(error.details.get("param")), code="invalid_value")
        room = None if self._context is None else self._context - len(prompt)
        if room is not None and room < 1:
            message = f"The prompt has {len(prompt)} tokens, and the model's context is {self._context} with the answer; send a shorter one."
            return Refusal(status=413, message=message, param="prompt" if ask.messages is None else "messages", code="context_length_exceeded")
        if room is not None and ask.max_tokens is not None and ask.max_tokens > room:
            message = f"The prompt's {len(prompt)} tokens and max_tokens={ask.max_tokens} pass the context of {self._context}; ask for {room}."
            return Refusal(status=400, message=message, param="max_tokens", code="context_length_exceeded")
        return GenerationRequest(
            prompt_ids=prompt, stop_token_ids=self._text.stop_token_ids, temperature=ask.temperature, top_p=ask.top_p,
            max_new_tokens=ask.max_tokens or (DEFAULT_MAX_TOKENS if room is None else min(DEFAULT_MAX_TOKENS, room)),
            seed=secrets.randbelow(2**31) if ask.seed is None else ask.seed % 2**31,
        )  # fmt: skip

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

    async def _pieces(self, ask: Ask, request: GenerationRequest) -> AsyncIterator[Piece]:
        detokenizer, scanner = Detokenizer(self._text.tokenizer), StopScanner(ask.stop)
        count, unsent = 0, ""
        outcomes = self._batcher.generate(request)
        try:
            async for outcome in outcomes:
                if isinstance(outcome, Generation):
                    reason = "length" if outcome.finish_reason == "length" else "stop"
                    yield Piece(text=unsent + scanner.flush(), completion_tokens=count, finish_reason=reason)  # type: ignore[arg-type]
                    return
                count += 1
                unsent += scanner.push(detokenizer.push(outcome))
                if scanner.stopped:
                    yield Piece(text=unsent, completion_tokens=count, finish_reason="stop")
                    return
                if ask.incremental and unsent:
                    yield Piece(text=unsent, completion_tokens=count)
                    unsent = ""
        finally:
            await asyncio.shield(outcomes.aclose())
