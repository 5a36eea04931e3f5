"""The other side of a `genopt.process.SessionProcess`: holds an engine's session and answers calls."""

from __future__ import annotations

import json
import queue
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from genopt import catalog
from genopt.engines.base import GenerationRequest, Joinable, RunningBatch, TextSession, TokenLogProbs
from genopt.errors import StageError, to_wire


class SessionServer:
    """Answers the calls of one `genopt.process.SessionProcess`.

    Args:
        incoming: Stream of JSON lines.
        outgoing: Stream for the answers.
    """

    def __init__(self, incoming: IO[str], outgoing: IO[str]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._calls: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._cancelled: set[int] = set()
        self._session: TextSession | None = None
        self._slots = 0
        self._batch: RunningBatch | None = None
        self._joined: set[int] = set()

    def serve(self) -> None:
        """Answers until the other side closes its end; while requests are under way that joined a batch, it advances between two calls."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            if self._batch is not None and self._batch.busy and self._calls.empty():
                self._advance(self._batch)
                continue
            if (message := self._calls.get()) is None:
                break
            if "join" in message:
                self._join(message["join"], message["request"])
                continue
            if "leave" in message:
                if self._batch is not None:
                    self._batch.leave(message["leave"])
                continue
            try:
                answer: dict[str, Any] = {"result": self._answer(message)}
            except Exception as error:  # noqa: BLE001 - every failure of a call crosses the boundary as data
                traceback.print_exc()
                answer = {"error": to_wire(error)}
            self._write(answer)
        if self._session is not None:
            self._session.close()

    def _read(self) -> None:
        for line in self._incoming:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
            else:
                self._calls.put(message)
        self._calls.put(None)

    def _write(self, message: Mapping[str, Any]) -> None:
        self._outgoing.write(json.dumps(message) + "\n")
        self._outgoing.flush()

    def _join(self, key: int, request: Mapping[str, Any]) -> None:
        try:
            if self._batch is None:
                self._batch = self._session.running_batch(self._slots) if isinstance(self._session, Joinable) else None
            if self._batch is None:
                raise StageError("This engine has no batch that requests could join; call generate.")
            self._joined.add(key)
            self._batch.join(key, GenerationRequest.model_validate(request))
        except Exception as error:  # noqa: BLE001 - as for calls
            self._joined.discard(key)
            self._write({"failed": [key], "error": to_wire(error)})

    def _advance(self, batch: RunningBatch) -> None:
        """One step; its tokens are one message, since each message costs time that the engine then lacks."""
        try:
            outcome = batch.step()
        except Exception as error:  # noqa: BLE001 - as for calls
            traceback.print_exc()
            self._write({"failed": sorted(self._joined), "error": to_wire(error)})
            self._joined.clear()
            self._batch = None
            return
        self._joined.difference_update(key for key, _ in outcome.ended)
        tokens = [(key, token, None if scored is None else scored.model_dump(mode="json")) for key, token, scored in outcome.tokens]
        self._write({"step": tokens, "ended": [[key, generation.finish_reason] for key, generation in outcome.ended]})

    def _answer(self, message: Mapping[str, Any]) -> Any:
        method, arguments = message["method"], message["arguments"]
        if method == "open":
            engine = catalog.load("engines", arguments["engine"])
            engine.check(arguments["options"])
            self._session = engine.open(Path(arguments["artifact"]), arguments["options"])
            return None
        if self._session is None:
            raise StageError("The session is not open; call open first.")
        if method == "generate":
            self._cancelled.clear()
            requests = [GenerationRequest.model_validate(item) for item in arguments["requests"]]
            on_token = self._emit if message["stream"] else None
            return [generation.model_dump(mode="json") for generation in self._session.generate(requests, on_token)]
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
            self._batch = self._session.running_batch(self._slots) if isinstance(self._session, Joinable) else None
            return self._batch is not None
        if method == "memory":
            return self._session.memory().model_dump(mode="json")
        raise StageError(f"A session has no method {method!r}.")

    def _emit(self, index: int, token: int, log_probs: TokenLogProbs | None) -> bool:
        self._write({"token": [index, token]} if log_probs is None else {"token": [index, token], "log_probs": log_probs.model_dump(mode="json")})
        return index not in self._cancelled
