"""The answer to one request for images: one stream of events per image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from typing_extensions import TypedDict

from genopt.serving.answer import BROKEN, Patience
from genopt.serving.exchange import Admitted, Event, Picture, Refusal
from genopt.serving.turns import Part, in_turns


class ImageData(TypedDict):
    """One image, a PNG in base64."""

    b64_json: str


class ImagesResponse(TypedDict):
    """All images of a request."""

    created: int
    data: list[ImageData]


class ImageAnswer:
    """Waits for all images of a request; see `genopt.serving.guard.Answered` for what it tells.

    Args:
        images: Begin the events of each image.
        patience: How long to wait.
        at_once: Most images under way; see `genopt.serving.turns`.
    """

    def __init__(self, images: Sequence[Part], patience: Patience, at_once: int) -> None:
        self._streams = in_turns(images, at_once)
        self._patience = patience
        self._waiting: list[asyncio.Task[Picture | Refusal]] = []
        self.prompt_tokens = self.completion_tokens = self.longest = 0
        self.variant = ""
        self.failure: Refusal | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    async def pictures(self) -> list[Picture] | Refusal:
        """All images in order, or why there are none; one that is refused ends the wait for the others."""
        self._waiting = [asyncio.create_task(self._picture(stream)) for stream in self._streams]
        try:
            async with asyncio.timeout(self._patience.answer_s):
                for next_one in asyncio.as_completed(self._waiting):
                    if isinstance(found := await next_one, Refusal):
                        self.failure = found
                        return found
        except TimeoutError:
            self.failure = Refusal(status=504, message=f"The images took more than {self._patience.answer_s:.0f} s; ask for fewer.", code="timeout")
            return self.failure
        return [picture for task in self._waiting if isinstance(picture := task.result(), Picture)]

    async def _picture(self, stream: AsyncGenerator[Event, None]) -> Picture | Refusal:
        found: Picture | Refusal = BROKEN
        async for event in stream:
            if isinstance(event, Admitted):
                self.variant = event.variant
            elif isinstance(event, Refusal):
                return event  # without reading on, which would let the next one begin
            elif isinstance(event, Picture):
                self.last_at = time.monotonic()
                self.first_at = self.first_at or self.last_at
                found = event
        return found

    async def close(self) -> None:
        """Cancels what still runs; called once the answer is out, or its caller gone."""
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
