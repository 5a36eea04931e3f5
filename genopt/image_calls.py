"""What can be asked of sessions that make images in a process of their own; see `genopt.session_server`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genopt.engines.images import ImageRequest, ImageSession
from genopt.errors import StageError
from genopt.session_server import Channel


class ImageCalls:
    """See `genopt.session_server.Calls`.

    Args:
        session: The open session.
        channel: To the other side.
    """

    def __init__(self, session: ImageSession, channel: Channel) -> None:
        self._session = session
        self._channel = channel

    def answer(self, method: str, arguments: Mapping[str, Any], stream: bool) -> Any:
        """See `Calls.answer`."""
        if method != "generate":
            raise StageError(f"A session has no method {method!r}.")
        self._channel.cancelled.clear()
        requests = [ImageRequest.model_validate(item) for item in arguments["requests"]]
        return [image.model_dump(mode="json") for image in self._session.generate(requests, self._emit if stream else None)]

    def _emit(self, index: int, step: int, steps: int) -> bool:
        self._channel.write({"step": [index, step, steps]})
        return index not in self._channel.cancelled

    def tell(self, message: Mapping[str, Any]) -> None:
        """See `Calls.tell`; there is nothing that these sessions would be told."""

    def advance(self) -> bool:
        """See `Calls.advance`; images are made within calls."""
        return False
