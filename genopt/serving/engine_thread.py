"""One batch after another on an engine session: what batches of texts and of images have in common."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from genopt.engines.base import Memory
from genopt.errors import StageTimeoutError
from genopt.plan import Record

T = TypeVar("T")


class EngineLoad(Record):
    """What a replica has done and does.

    Attributes:
        batch_sizes: How many batches of each size were started; where requests join a running batch, how many steps gave so many tokens.
        tokens: New tokens of all requests so far; of images their steps.
        running: Requests in the batch that runs now.
        waiting: Requests that wait for the next one, or for a place.
    """

    batch_sizes: dict[int, int]
    tokens: int
    running: int
    waiting: int


class Closable(Protocol):
    """What is needed of a session, whatever it makes."""

    def memory(self) -> Memory:
        """See `Session.memory`."""

    def close(self) -> None:
        """See `Session.close`."""


class EngineThread:
    """The only thread that touches a session, and how far its batch is.

    Args:
        session: An open session.
        waiting: How many requests wait for the next batch.
        on_change: Told the load whenever a batch starts or ends.
    """

    def __init__(self, session: Closable, *, waiting: Callable[[], int], on_change: Callable[[EngineLoad], None]) -> None:
        self._session, self._waiting, self._on_change = session, waiting, on_change
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-session")
        self._loop: asyncio.Task[None] | None = None
        self._running = 0
        self._sizes: Counter[int] = Counter()
        self._tokens = 0
        self._progress_at = time.monotonic()

    @property
    def load(self) -> EngineLoad:
        """What was done and is under way."""
        return EngineLoad(batch_sizes=dict(self._sizes), tokens=self._tokens, running=self._running, waiting=self._waiting())

    def start(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts the loop that makes batches of what waits, unless it runs; it ends with `close`."""
        if self._loop is None:
            self._loop = asyncio.create_task(loop())

    async def run(self, size: int, batch: Callable[[], T]) -> T:
        """Runs a batch and returns what it gives.

        Args:
            size: Requests in it.
            batch: The call of the session; it says `advanced` as it goes on.
        """
        self._running, self._progress_at = size, time.monotonic()
        self._sizes[size] += 1
        self._on_change(self.load)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, batch)
        finally:
            self._running = 0
            self._on_change(self.load)

    def advanced(self) -> None:
        """Notes a token or a step of one request; the session's thread calls it."""
        self._progress_at = time.monotonic()
        self._tokens += 1

    async def check(self, stall_s: float) -> None:
        """See `genopt.serving.batching.Scheduler.check`; what comes before the first token or step must fit `stall_s`."""
        if not self._running:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._session.memory)
        elif time.monotonic() - self._progress_at > stall_s:
            raise StageTimeoutError(f"The engine made no step for {stall_s:.0f} s; the replica has to be replaced.")

    def close(self) -> None:
        """Ends the session; requests under way fail."""
        if self._loop is not None:
            self._loop.cancel()
        self._session.close()
        self._thread.shutdown(wait=False)
