"""The answer to one request for images: one stream of events per image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from typing_extensions import TypedDict

from genopt.serving.answer import BROKEN, Patience
from genopt.serving.exchange import Admitted, Event, Picture, Refusal


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
        streams: Events of each image.
        patience: How long to wait.
    """

    def __init__(self, streams: Sequence[AsyncGenerator[Event, None]], patience: Patience) -> None:
        self._streams = streams
        self._patience = patience
        self._waiting: list[asyncio.Task[Picture | Refusal]] = []
        self.prompt_tokens = self.completion_tokens = self.longest = 0
        self.variant = ""
        self.failure: Refusal | None = None
        self.first_at: float | None = None
        self.last_at: float | None = None

    async def pictures(self) -> list[Picture] | Refusal:
        """All images in order, or why there are none."""
        self._waiting = [asyncio.create_task(self._picture(stream)) for stream in self._streams]
        _, running = await asyncio.wait(self._waiting, timeout=self._patience.answer_s)
        if running:
            self.failure = Refusal(status=504, message=f"The images took more than {self._patience.answer_s:.0f} s; ask for fewer.", code="timeout")
            return self.failure
        found = [task.result() for task in self._waiting]
        self.failure = next((event for event in found if isinstance(event, Refusal)), None)
        return self.failure or [event for event in found if isinstance(event, Picture)]

    async def _picture(self, stream: AsyncGenerator[Event, None]) -> Picture | Refusal:
        async for event in stream:
            if isinstance(event, Admitted):
                self.variant = event.variant
            elif isinstance(event, Refusal):
                return event
            elif isinstance(event, Picture):
                self.last_at = time.monotonic()
                self.first_at = self.first_at or self.last_at
                return event
        return BROKEN

    async def close(self) -> None:
        """Cancels what still runs; called once the answer is out, or its caller gone."""
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
