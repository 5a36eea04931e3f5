"""The other side of a `genopt.process.EngineProcess`: holds an engine's session and answers calls."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from genopt import catalog
from genopt.engines.base import Session
from genopt.errors import StageError, to_wire


class Channel:
    """What a session says to the other side, besides results.

    Args:
        outgoing: Stream of JSON lines.

    Attributes:
        cancelled: Indices of requests of the current call that the other side gave up.
    """

    def __init__(self, outgoing: IO[str]) -> None:
        self._outgoing = outgoing
        self.cancelled: set[int] = set()

    def write(self, message: Mapping[str, Any]) -> None:
        """Sends a message."""
        self._outgoing.write(json.dumps(message) + "\n")
        self._outgoing.flush()


class Calls(Protocol):
    """An entry of the catalogue's sessions: what can be asked of sessions of one modality.

    Made of the open session and a `Channel`.
    """

    def answer(self, method: str, arguments: Mapping[str, Any], stream: bool) -> Any:
        """The result of a call, as JSON values.

        Raises:
            GenoptError: There is no such method, or the session failed.
        """

    def tell(self, message: Mapping[str, Any]) -> None:
        """Takes a message that wants no result."""

    def advance(self) -> bool:
        """Goes on with what is under way between two calls; False where nothing is."""


class SessionServer:
    """Answers the calls of one `genopt.process.EngineProcess`.

    Args:
        incoming: Stream of JSON lines.
        outgoing: Stream for the answers.
    """

    def __init__(self, incoming: IO[str], outgoing: IO[str]) -> None:
        self._incoming = incoming
        self._channel = Channel(outgoing)
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._session: Session | None = None
        self._calls: Calls | None = None

    def serve(self) -> None:
        """Answers until the other side closes its end; what is under way advances between two calls."""
        session = self._opened()
        if session is None:
            return
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            if self._messages.empty() and self._calls is not None and self._calls.advance():
                continue
            if (message := self._messages.get()) is None:
                break
            if "method" not in message:
                if self._calls is not None:
                    self._calls.tell(message)
                continue
            self._channel.write(self._answered(message))
        session.close()

    def _opened(self) -> Session | None:
        """Answers until a session is open; None where the other side closes its end before.

        In the only thread: vLLM forks while it opens, which is safe where no other thread can hold a lock.
        """
        for line in self._incoming:
            self._channel.write(self._answered(json.loads(line)))
            if self._session is not None:
                return self._session
        return None

    def _read(self) -> None:
        for line in self._incoming:
            message = json.loads(line)
            if "cancel" in message:
                self._channel.cancelled.add(message["cancel"])
            else:
                self._messages.put(message)
        self._messages.put(None)

    def _answered(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"result": self._answer(message)}
        except Exception as error:  # noqa: BLE001 - every failure of a call crosses the boundary as data
            traceback.print_exc()
            return {"error": to_wire(error)}

    def _answer(self, message: Mapping[str, Any]) -> Any:
        method, arguments = message["method"], message["arguments"]
        if method == "prepare":
            catalog.load("engines", arguments["engine"]).prepare()
            return time.monotonic()
        if method == "open":
            _log_to(arguments["log"])
            engine = catalog.load("engines", arguments["engine"])
            engine.check(arguments["options"])
            self._session = engine.open(Path(arguments["artifact"]), arguments["options"])
            self._calls = catalog.load("sessions", engine.modality)(self._session, self._channel)
            return None
        if self._session is None or self._calls is None:
            raise StageError("The session is not open; call open first.")
        if method == "memory":
            return self._session.memory().model_dump(mode="json")
        return self._calls.answer(method, arguments, message["stream"])


def _log_to(path: str) -> None:
    """Sends to a file what libraries print from now on: a process that was started ahead belongs to a candidate only now."""
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
