"""The process that does the heavy work: `python -m genopt.worker stage|session`.

`stage REQUEST RESULT` runs one stage of `STAGES` and writes its result or error as JSON.
`session [CPUS]` opens an engine and answers calls as JSON lines on standard input and output, on these processors; everything
that libraries print goes to standard error instead. Needs pydantic and the standard library, plus
whatever the stage or engine imports.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from genopt import catalog
from genopt.engines.base import GenerationRequest, TextSession, TokenLogProbs
from genopt.errors import StageError, to_wire
from genopt.guardian import guard

STAGES: Mapping[str, str] = {
    "transform": "genopt.techniques.run:run_transform",
    "prepare_text": "genopt.tasks.text_data:prepare",
    "profile_text": "genopt.tasks.text_data:profile",
    "text_sensitivity": "genopt.quality.sensitivity:measure",
    "score_text_tasks": "genopt.tasks.text_finalists:score_tasks",
}


def run_stage_file(request: Path, result: Path) -> None:
    """Runs the stage that a request file describes and writes the result file atomically."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    try:
        module, _, function = STAGES[asked["kind"]].partition(":")
        value = vars(importlib.import_module(module))[function](asked["payload"], asked["time_limit_s"])
        answer: dict[str, Any] = {"result": value}
    except Exception as error:  # noqa: BLE001 - every failure of a stage crosses the boundary as data
        traceback.print_exc()
        answer = {"error": to_wire(error)}
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.rename(result)


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

    def serve(self) -> None:
        """Answers until the other side closes its end."""
        threading.Thread(target=self._read, daemon=True).start()
        while (message := self._calls.get()) is not None:
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
        if method == "memory":
            return self._session.memory().model_dump(mode="json")
        raise StageError(f"A session has no method {method!r}.")

    def _emit(self, index: int, token: int, log_probs: TokenLogProbs | None) -> bool:
        self._write({"token": [index, token]} if log_probs is None else {"token": [index, token], "log_probs": log_probs.model_dump(mode="json")})
        return index not in self._cancelled


def main(arguments: list[str]) -> int:
    """Entry point of the process."""
    guard()
    if arguments[0] == "stage":
        run_stage_file(Path(arguments[1]), Path(arguments[2]))
        return 0
    if len(arguments) > 1:  # before any library starts threads, which inherit it
        os.sched_setaffinity(0, map(int, arguments[1].split(",")))
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not land in the protocol
    SessionServer(sys.stdin, protocol).serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
