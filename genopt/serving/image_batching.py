"""Makes the images of concurrent requests on one engine session: those of the same shape together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from genopt.engines.images import GeneratedImage, ImageRequest, OnStep
from genopt.errors import GenoptError, OutOfMemoryError, SpecError, StageCrashedError, StageError
from genopt.serving.engine_thread import Closable, EngineLoad, EngineThread


class ImageBatchSession(Closable, Protocol):
    """What batching needs of a session; `genopt.process.ImageProcess` is one."""

    @property
    def alive(self) -> bool:
        """Whether its process is still there."""

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        """See `ImageSession.generate`."""


class _Job:
    def __init__(self, request: ImageRequest) -> None:
        self.request = request
        self.result: asyncio.Future[GeneratedImage] = asyncio.get_running_loop().create_future()
        self.cancelled = threading.Event()

    def end(self, outcome: GeneratedImage | GenoptError) -> None:
        if self.result.done():
            return
        if isinstance(outcome, GenoptError):
            self.result.set_exception(outcome)
        else:
            self.result.set_result(outcome)


class ImageBatcher:
    """Runs requests on a session, at most `max_batch` of one shape at once; a new batch starts when the former is done.

    The session is touched by one thread only. A request whose caller went away is cancelled at its next step, and dropped if
    it was still waiting. Where a batch is refused for what one of its requests says, or does not fit into the memory, each is tried alone.

    Args:
        session: An open session.
        max_batch: Upper bound of images per batch.
        wait_s: How long the first request of a batch waits for company, in seconds.
        on_change: Told the load whenever a batch starts or ends.
    """

    def __init__(self, session: ImageBatchSession, *, max_batch: int, wait_s: float, on_change: Callable[[EngineLoad], None]) -> None:
        self._session, self._max_batch, self._wait_s = session, max_batch, wait_s
        self._waiting: list[_Job] = []
        self._asked = asyncio.Event()
        self._engine = EngineThread(session, waiting=lambda: len(self._waiting), on_change=on_change)

    @property
    def load(self) -> EngineLoad:
        """What was done and is under way; each step of each image counts as a token."""
        return self._engine.load

    async def generate(self, request: ImageRequest) -> GeneratedImage:
        """The image; cancelling the call cancels the request.

        Raises:
            SpecError: The pipeline cannot fulfil the request.
            OutOfMemoryError: Its image does not fit into the memory, even alone.
            GenoptError: The engine failed.
        """
        self._engine.start(self._run)
        job = _Job(request)
        self._waiting.append(job)
        self._asked.set()
        try:
            return await job.result
        finally:
            job.cancelled.set()

    async def check(self, stall_s: float) -> None:
        """See `genopt.serving.batching.Scheduler.check`; a step must fit `stall_s`."""
        await self._engine.check(stall_s)

    def close(self) -> None:
        """Ends the session; requests under way fail."""
        self._engine.close()

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            if self._max_batch > 1:
                await asyncio.sleep(self._wait_s)
            batch = self._next_batch()
            if batch:
                await self._make(batch)
            if not self._waiting:
                self._asked.clear()

    def _next_batch(self) -> list[_Job]:
        """Those of the first one's shape, in the order in which they came."""
        self._waiting = [job for job in self._waiting if not job.cancelled.is_set()]
        alike = [job for job in self._waiting if job.request.shape == self._waiting[0].request.shape][: self._max_batch]
        self._waiting = [job for job in self._waiting if job not in alike]
        return alike

    async def _make(self, batch: list[_Job]) -> None:
        def on_step(index: int, _step: int, _steps: int) -> bool:
            self._engine.advanced()
            return not batch[index].cancelled.is_set()

        requests = [job.request for job in batch]
        try:
            made = await self._engine.run(len(batch), lambda: self._session.generate(requests, on_step))
            for job, image in zip(batch, made, strict=True):
                job.end(image)
        except (SpecError, OutOfMemoryError) as error:
            if not self._session.alive:  # it was killed, which says nothing of any request
                for job in batch:
                    job.end(StageCrashedError("The engine's process was killed, most likely for lack of memory; try again."))
            elif len(batch) == 1:
                batch[0].end(error)
            else:
                for job in batch:
                    await self._make([job])
        except Exception as error:  # noqa: BLE001 - whatever the engine raised belongs to the callers, and the loop must go on
            for job in batch:
                job.end(error if isinstance(error, GenoptError) else StageError(f"The engine failed ({type(error).__name__}); try again."))
