"""The `ort_genai` engine with a busy wait in every decode step: the planted slowdown of `measurement.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.ort_genai import OrtGenaiEngine, OrtGenaiSession
from genopt.plan import JsonValue


class SlowedSession:
    """Every token takes `delay_ns` longer; no time at all is spent waiting where that is 0, but the same calls are made."""

    def __init__(self, session: OrtGenaiSession, delay_ns: int) -> None:
        self._session, self._delay_ns = session, delay_ns

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        def wait(*_: object) -> bool:
            until = time.monotonic_ns() + self._delay_ns
            while time.monotonic_ns() < until:
                pass
            return True

        return self._session.generate(requests, wait)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        return self._session.score(sequences)

    def memory(self) -> Memory:
        return self._session.memory()

    def close(self) -> None:
        self._session.close()


class SlowedEngine:
    """See `genopt.engines.base.Engine`; its option `delay_ns` comes on top of those of `ort_genai`."""

    name = "slowed"
    accepts = OrtGenaiEngine.accepts

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        OrtGenaiEngine.check({name: value for name, value in options.items() if name != "delay_ns"})

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> SlowedSession:
        session = OrtGenaiEngine.open(artifact, {name: value for name, value in options.items() if name != "delay_ns"})
        return SlowedSession(session, int(str(options["delay_ns"])))
