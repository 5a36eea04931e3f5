"""Lets the parts of one request, its choices or images, begin a few at a time, so that it fits where there are only as many places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from genopt.serving.exchange import Event, Refusal

Part = Callable[[], AsyncGenerator[Event, None]]
"""Begins the stream of one part; called again where the part found no place."""
AGAIN_S = 1
"""Before a part that found no place tries again, where its refusal names no time."""


def in_turns(parts: Sequence[Part], at_once: int) -> list[AsyncGenerator[Event, None]]:
    """The streams of a request's parts, of which so many are under way at once; each further part begins when another has ended.

    The first ones are turned away where there is no place for them, as a quick 429 serves a caller best. A further one tries again:
    what its request has got by then would be lost.

    Args:
        parts: In the order in which they begin. All their streams have to be read at the same time, each to its end, as only then another begins.
        at_once: Most parts under way.
    """
    places = asyncio.Semaphore(at_once)
    return [_in_turn(part, places, is_first=index < at_once) for index, part in enumerate(parts)]


async def _in_turn(part: Part, places: asyncio.Semaphore, *, is_first: bool) -> AsyncGenerator[Event, None]:
    async with places:
        tries_again = not is_first
        while True:
            full: Refusal | None = None
            async with aclosing(part()) as events:
                async for event in events:
                    if tries_again and isinstance(event, Refusal) and event.status == 429:
                        full = event
                        break
                    tries_again = False
                    yield event
            if full is None:
                return
            await asyncio.sleep(full.retry_after_s or AGAIN_S)
