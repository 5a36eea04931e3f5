"""Starts a request again whose replica was lost before its caller had got any text."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing

from genopt.serving.exchange import ENGINE_FAILED, ENGINE_LOST, Admitted, AnyAsk, Backend, Caller, Event, Picture, Piece, Refusal, Served

ATTEMPTS = {ENGINE_LOST.code: 5, ENGINE_FAILED.code: 2}
"""How often a request is tried that ends with such a refusal. An engine that failed on it may do so again, and take what else it does along."""
AGAIN_S = 0.1
"""Before the second attempt; twice as long before each further one, so that a replica that ends can be noticed."""


class Retrying:
    """A `Backend` whose callers do not notice that a replica was lost, unless they have got text from it already.

    The admission is held back until text comes: till then it could be another replica's.

    Args:
        backend: Answers.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def generate(self, ask: AnyAsk, caller: Caller) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        for attempt in itertools.count(1):
            admitted: Admitted | None = None
            started = lost = False
            async with aclosing(self._backend.generate(ask, caller)) as events:
                async for event in events:
                    if isinstance(event, Admitted):
                        admitted = event
                        continue
                    if isinstance(event, Refusal) and not started and attempt < ATTEMPTS.get(event.code, 1):
                        lost = True
                        break
                    if isinstance(event, Piece | Picture) and admitted is not None:
                        yield admitted
                        admitted = None
                    started = True
                    yield event
            if not lost:
                return
            await asyncio.sleep(AGAIN_S * 2 ** (attempt - 1))

    async def ready(self) -> bool:
        """See `Backend.ready`."""
        return await self._backend.ready()

    def served(self) -> Served:
        """See `Backend.served`."""
        return self._backend.served()
