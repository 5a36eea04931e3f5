"""Continues requests on an engine whose running batch they can join: none waits for a batch to end, only for a free place in it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

from genopt.engines.base import GenerationRequest, TokenLogProbs
from genopt.errors import GenoptError, StageTimeoutError, from_wire
from genopt.serving.batching import Finish, Outcome, Token
from genopt.serving.engine_thread import EngineLoad

_LISTEN_S = 0.5
"""How soon a closed scheduler's thread notices."""


class Channel(Protocol):
    """Messages to and from the engine's process; `genopt.process.SessionProcess` is one."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message; may raise that the process is gone."""

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None; may raise that the process is gone."""

    def close(self) -> None:
        """Ends the process."""


class _Job:
    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.key: int | None = None


class Joining:
    """See `genopt.serving.batching.Scheduler`; the engine's process must have said that it is joinable.

    A caller that is slow to take its tokens delays nobody: they wait in a queue of its own, which its `max_new_tokens` bounds.

    Args:
        channel: To the engine.
        slots: Most requests under way in the engine; more wait here.
        on_change: Told the load whenever a request comes or ends.
    """

    def __init__(self, channel: Channel, *, slots: int, on_change: Callable[[EngineLoad], None]) -> None:
        self._channel = channel
        self._slots = slots
        self._on_change = on_change
        self._waiting: deque[_Job] = deque()
        self._running: dict[int, _Job] = {}
        self._keys = itertools.count()
        self._sizes: Counter[int] = Counter()
        self._tokens = 0
        self._progress_at = time.monotonic()
        self._listener: threading.Thread | None = None
        self._closed = threading.Event()
        self._failure: GenoptError | None = None
        self._pongs: list[asyncio.Future[None]] = []

    @property
    def load(self) -> EngineLoad:
        """See `Scheduler.load`."""
        return EngineLoad(batch_sizes=dict(self._sizes), tokens=self._tokens, running=len(self._running), waiting=len(self._waiting))

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Token | Finish, None]:
        """See `Scheduler.generate`."""
        if self._failure is not None:
            raise self._failure
        self._listen()
        job = _Job(request)
        self._waiting.append(job)
        self._fill()
        try:
            while True:
                outcome = await job.outcomes.get()
                if isinstance(outcome, GenoptError):
                    raise outcome
                yield outcome
                if isinstance(outcome, Finish):
                    return
        finally:
            self._leave(job)

    async def check(self, stall_s: float) -> None:
        """See `Scheduler.check`."""
        if self._failure is not None:
            raise self._failure
        if self._running:
            if time.monotonic() - self._progress_at > stall_s:
                raise StageTimeoutError(f"The engine made no step for {stall_s:.0f} s; the replica has to be replaced.")
            return
        self._listen()
        pong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self._channel.send({"method": "memory", "arguments": {}, "stream": False})
        await pong

    def close(self) -> None:
        """See `Scheduler.close`."""
        self._closed.set()
        self._channel.close()

    def _leave(self, job: _Job) -> None:
        """Gives a request's place back; the engine does so once it has noticed."""
        if job.key is None:
            if job in self._waiting:
                self._waiting.remove(job)
        elif job.key in self._running:
            self._send({"leave": job.key})
        self._on_change(self.load)

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            job = self._waiting.popleft()
            if not self._running:
                self._progress_at = time.monotonic()
            job.key = next(self._keys)
            self._running[job.key] = job
            self._send({"join": job.key, "request": job.request.model_dump(mode="json")})
        self._on_change(self.load)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._channel.send(message)
        except GenoptError as error:
            self._fail(error)

    def _listen(self) -> None:
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = threading.Thread(target=self._receive, args=(loop,), name="engine-listener", daemon=True)
            self._listener.start()

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closed.is_set():
            try:
                message = self._channel.receive(_LISTEN_S)
            except GenoptError as error:
                if not self._closed.is_set():
                    loop.call_soon_threadsafe(self._fail, error)
                return
            if message is not None:
                loop.call_soon_threadsafe(self._take, message)

    def _take(self, message: Mapping[str, Any]) -> None:
        self._progress_at = time.monotonic()
        if "failed" in message:
            for key in message["failed"]:
                self._end(key, from_wire(message["error"]))
        elif "step" in message:
            if message["step"]:
                self._sizes[len(message["step"])] += 1
            self._tokens += len(message["step"])
            for key, token, scored in message["step"]:
                if (job := self._running.get(key)) is not None:
                    job.outcomes.put_nowait(Token(token, None if scored is None else TokenLogProbs.model_validate(scored)))
            for key, reason in message["ended"]:
                self._end(key, Finish(reason))
        elif self._pongs:
            pong = self._pongs.pop(0)
            if not pong.done():
                pong.set_result(None)

    def _end(self, key: int, outcome: Finish | GenoptError) -> None:
        job = self._running.pop(key, None)
        if job is not None:
            job.outcomes.put_nowait(outcome)
            self._fill()

    def _fail(self, error: GenoptError) -> None:
        """The process is gone: everything that was under way has failed, and whatever comes will."""
        self._failure = error
        jobs = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        for job in jobs:
            job.outcomes.put_nowait(error)
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(error)
        self._pongs.clear()
        self._on_change(self.load)
