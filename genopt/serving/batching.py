"""Continues concurrent requests on one engine session: what every scheduler does, and the one for engines whose batches cannot be joined."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple, Protocol

from genopt.engines.base import Generation, GenerationRequest, OnToken, TokenLogProbs
from genopt.errors import GenoptError, StageError
from genopt.serving.engine_thread import Closable, EngineLoad, EngineThread


class Token(NamedTuple):
    """A new token, with its log-probabilities where the request asked for them."""

    id: int
    log_probs: TokenLogProbs | None


class Finish(NamedTuple):
    """A request is over.

    Attributes:
        reason: `stop` or `length`, or `cancelled`.
    """

    reason: str


Outcome = Token | Finish | GenoptError


class BatchSession(Closable, Protocol):
    """What batching needs of a session; `genopt.process.SessionProcess` is one."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`."""


class Scheduler(Protocol):
    """Continues requests on one engine."""

    @property
    def load(self) -> EngineLoad:
        """What was done and is under way."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Token | Finish, None]:
        """Yields tokens as soon as they are known, then the end; closing the generator cancels the request.

        Raises:
            GenoptError: The engine failed.
        """

    async def check(self, stall_s: float) -> None:
        """Returns if the engine lives: an idle one must answer, a busy one must have advanced lately.

        Args:
            stall_s: Longest accepted time without a sign of life, in seconds.

        Raises:
            GenoptError: It is dead or stuck.
        """

    def close(self) -> None:
        """Ends the session; requests under way fail."""


class _Job:
    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.cancelled = threading.Event()


class Batcher:
    """Runs requests on a session, at most `max_batch` at once; a new batch starts when the former is done.

    The session is touched by one thread only. A request whose caller went away is cancelled at its
    next token, and dropped if it was still waiting.

    Args:
        session: An open session.
        max_batch: Upper bound of requests per batch.
        wait_s: How long the first request of a batch waits for company, in seconds.
        on_change: Told the load whenever a batch starts or ends.
    """

    def __init__(self, session: BatchSession, *, max_batch: int, wait_s: float, on_change: Callable[[EngineLoad], None]) -> None:
        self._session = session
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._engine = EngineThread(session, waiting=self._waiting.qsize, on_change=on_change)

    @property
    def load(self) -> EngineLoad:
        """See `Scheduler.load`."""
        return self._engine.load

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Token | Finish, None]:
        """See `Scheduler.generate`."""
        self._engine.start(self._run)
        job = _Job(request)
        self._waiting.put_nowait(job)
        try:
            while True:
                outcome = await job.outcomes.get()
                if isinstance(outcome, GenoptError):
                    raise outcome
                yield outcome
                if isinstance(outcome, Finish):
                    return
        finally:
            job.cancelled.set()

    async def check(self, stall_s: float) -> None:
        """See `Scheduler.check`; the prefill of the longest prompt must fit `stall_s`."""
        await self._engine.check(stall_s)

    def close(self) -> None:
        """See `Scheduler.close`."""
        self._engine.close()

    async def _run(self) -> None:
        while True:
            batch = [job for job in await self._collect() if not job.cancelled.is_set()]
            if batch:
                await self._continue(batch)

    async def _collect(self) -> list[_Job]:
        batch = [await self._waiting.get()]
        deadline = time.monotonic() + self._wait_s
        while len(batch) < self._max_batch:
            try:
                batch.append(await asyncio.wait_for(self._waiting.get(), timeout=max(deadline - time.monotonic(), 0)))
            except TimeoutError:
                break
        return batch

    async def _continue(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()

        def on_token(index: int, token: int, log_probs: TokenLogProbs | None) -> bool:
            self._engine.advanced()
            job = batch[index]
            loop.call_soon_threadsafe(job.outcomes.put_nowait, Token(token, log_probs))
            return not job.cancelled.is_set()

        requests = [job.request for job in batch]
        try:
            generations = await self._engine.run(len(batch), lambda: self._session.generate(requests, on_token))
            for job, generation in zip(batch, generations, strict=True):
                job.outcomes.put_nowait(Finish(generation.finish_reason))
        except Exception as error:  # noqa: BLE001 - whatever the engine raised belongs to the callers, and the loop must go on
            failure = error if isinstance(error, GenoptError) else StageError(f"The engine failed ({type(error).__name__}); try again.")
            for job in batch:
                job.outcomes.put_nowait(failure)
