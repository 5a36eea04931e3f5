"""What can be asked of sessions of language models in a process of their own; see `genopt.session_server`."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genopt.engines.base import GenerationRequest, Joinable, RunningBatch, TextSession, TokenLogProbs
from genopt.errors import StageError, to_wire
from genopt.session_server import Channel


class TextCalls:
    """See `genopt.session_server.Calls`.

    Args:
        session: The open session.
        channel: To the other side.
    """

    def __init__(self, session: TextSession, channel: Channel) -> None:
        self._session = session
        self._channel = channel
        self._slots = 0
        self._batch: RunningBatch | None = None
        self._joined: set[int] = set()

    def answer(self, method: str, arguments: Mapping[str, Any], stream: bool) -> Any:
        """See `Calls.answer`."""
        if method == "generate":
            self._channel.cancelled.clear()
            requests = [GenerationRequest.model_validate(item) for item in arguments["requests"]]
            return [generation.model_dump(mode="json") for generation in self._session.generate(requests, self._emit if stream else None)]
        if method == "score":
            return self._session.score(arguments["sequences"]).model_dump(mode="json")
        if method == "distributions":
            wanted = arguments["wanted"]
            asked = wanted if isinstance(wanted, int) else np.array(wanted, np.int32)
            return self._session.distributions(arguments["sequence"], asked).to_lists()
        if method == "record":
            from genopt.quality.reference import record

            return record(self._session, arguments["sequences"], Path(arguments["path"]), arguments["facts"])
        if method == "compare":
            from genopt.quality.reference import compare

            return compare(self._session, arguments["sequences"], Path(arguments["path"])).model_dump(mode="json")
        if method == "joinable":
            self._slots = arguments["slots"]
            self._batch = self._running_batch()
            return self._batch is not None
        raise StageError(f"A session has no method {method!r}.")

    def _running_batch(self) -> RunningBatch | None:
        return self._session.running_batch(self._slots) if isinstance(self._session, Joinable) else None

    def _emit(self, index: int, token: int, log_probs: TokenLogProbs | None) -> bool:
        scored = {} if log_probs is None else {"log_probs": log_probs.model_dump(mode="json")}
        self._channel.write({"token": [index, token], **scored})
        return index not in self._channel.cancelled

    def tell(self, message: Mapping[str, Any]) -> None:
        """Requests that join the running batch, or leave it."""
        if "join" in message:
            self._join(message["join"], message["request"])
        elif "leave" in message and self._batch is not None:
            self._batch.leave(message["leave"])

    def _join(self, key: int, request: Mapping[str, Any]) -> None:
        try:
            if self._batch is None:
                self._batch = self._running_batch()
            if self._batch is None:
                raise StageError("This engine has no batch that requests could join; call generate.")
            self._joined.add(key)
            self._batch.join(key, GenerationRequest.model_validate(request))
        except Exception as error:  # noqa: BLE001 - every failure of a request crosses the boundary as data
            self._joined.discard(key)
            self._channel.write({"failed": [key], "error": to_wire(error)})

    def advance(self) -> bool:
        """One step of the running batch; its tokens are one message, since each message costs time that the engine then lacks.

        Whoever listens takes each message as a sign of progress, so a step that only waited is none.
        """
        if self._batch is None or not self._batch.busy:
            return False
        try:
            outcome = self._batch.step()
        except Exception as error:  # noqa: BLE001 - as for requests that join
            traceback.print_exc()
            self._channel.write({"failed": sorted(self._joined), "error": to_wire(error)})
            self._joined.clear()
            self._batch = None
            return True
        if outcome.waited:
            return True
        self._joined.difference_update(key for key, _ in outcome.ended)
        tokens = [(key, token, None if scored is None else scored.model_dump(mode="json")) for key, token, scored in outcome.tokens]
        self._channel.write({"step": tokens, "ended": [[key, generation.finish_reason] for key, generation in outcome.ended]})
        return True
