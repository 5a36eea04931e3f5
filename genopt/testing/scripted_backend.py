"""A `genopt.serving.exchange.Backend` with fixed events: everything of the HTTP API but the engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from genopt.serving.exchange import Admitted, Ask, Caller, Event, Piece, Refusal, Served

ADMITTED = Admitted(prompt_tokens=3, variant="fast")
ANSWER = (ADMITTED, Piece(text="a", completion_tokens=1), Piece(text="b", completion_tokens=2, finish_reason="stop"))
"""A whole answer of two tokens."""
FULL = Refusal(status=429, message="Too many requests are waiting; try again shortly.", code="over_capacity")


class ScriptedBackend:
    """See `Backend`.

    Args:
        events: What every request gets; a number is a pause in seconds, None one without end.
        ready: What `ready` says.
        places: How many requests may be under way; further ones get `FULL`.

    Attributes:
        asked: What was asked for, and by whom.
        closed: How many requests have ended.
        taken: Places that are taken by others.
    """

    def __init__(self, *events: Event | float | None, ready: bool = True, places: int = 1000) -> None:
        self._events = events
        self._ready = ready
        self._places = places
        self.asked: list[tuple[Ask, Caller]] = []
        self.closed = 0
        self.taken = 0

    async def generate(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        self.asked.append((ask, caller))
        if len(self.asked) - self.closed + self.taken > self._places:
            self.closed += 1
            yield FULL
            return
        try:
            for event in self._events:
                if event is None:
                    await asyncio.Event().wait()
                elif isinstance(event, int | float):
                    await asyncio.sleep(event)
                else:
                    yield event
        finally:
            self.closed += 1

    async def ready(self) -> bool:
        """See `Backend.ready`."""
        return self._ready

    def served(self) -> Served:
        """See `Backend.served`."""
        return Served(model="m", variant="stable")
