"""Collects concurrent requests and continues them as batches on one engine session."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken
from genopt.errors import GenoptError, StageError, StageTimeoutError

Outcome = int | Generation | GenoptError


class BatchSession(Protocol):
    """What batching needs of a session; `genopt.process.SessionProcess` is one."""

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`."""

    def memory(self) -> Memory:
        """See `TextSession.memory`."""

    def close(self) -> None:
        """See `TextSession.close`."""


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
        on_batch: Told the size of each batch before it starts.
    """

    def __init__(self, session: BatchSession, *, max_batch: int, wait_s: float, on_batch: Callable[[int], None]) -> None:
        self._session = session
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-session")
        self._loop_task: asyncio.Task[None] | None = None
        self._busy = False
        self._progress_at = time.monotonic()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[int | Generation, None]:
        """Yields tokens as soon as they are known, then the finished generation.

        Raises:
            GenoptError: The engine failed.
        """
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run())
        job = _Job(request)
        self._waiting.put_nowait(job)
        try:
            while True:
                outcome = await job.outcomes.get()
                if isinstance(outcome, GenoptError):
                    raise outcome
                yield outcome
                if isinstance(outcome, Generation):
                    return
        finally:
            job.cancelled.set()

    async def check(self, stall_s: float) -> None:
        """Returns if the engine lives: an idle one must answer, a busy one must have made a token lately.

        Args:
            stall_s: Longest accepted time without a token, in seconds; prefill of the longest prompt must fit.

        Raises:
            GenoptError: It is dead or stuck.
        """
        if not self._busy:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._session.memory)
        elif time.monotonic() - self._progress_at > stall_s:
            raise StageTimeoutError(f"The engine made no token for {stall_s:.0f} s; the replica has to be replaced.")

    def close(self) -> None:
        """Ends the session; requests under way fail."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        self._session.close()
        self._thread.shutdown(wait=False)

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

        def on_token(index: int, token: int) -> bool:
            self._progress_at = time.monotonic()
            job = batch[index]
            loop.call_soon_threadsafe(job.outcomes.put_nowait, token)
            return not job.cancelled.is_set()

        self._on_batch(len(batch))
        self._busy, self._progress_at = True, time.monotonic()
        requests = [job.request for job in batch]
        try:
            generations = await loop.run_in_executor(self._thread, self._session.generate, requests, on_token)
            for job, generation in zip(batch, generations, strict=True):
                job.outcomes.put_nowait(generation)
        except Exception as error:  # noqa: BLE001 - whatever the engine raised belongs to the callers, and the loop must go on
            failure = error if isinstance(error, GenoptError) else StageError(f"The engine failed ({type(error).__name__}); try again.")
            for job in batch:
                job.outcomes.put_nowait(failure)
        finally:
            self._busy = False
