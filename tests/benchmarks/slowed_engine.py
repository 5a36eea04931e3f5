"""Another engine with a busy wait in every decode step: the planted slowdown of `measurement.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from genopt import catalog
from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores, TextSession
from genopt.plan import JsonValue


class SlowedSession:
    """Every token takes longer by as many nanoseconds as a file says; no time is spent where that is 0, but the same calls are made.

    On a GPU the wait is the GPU's, since one of the host may hide behind the GPU's work.
    """

    def __init__(self, session: TextSession, delay: Path) -> None:
        self._session, self._delay = session, delay

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        delay_ns = int(self._delay.read_text())
        wait = _gpu_wait if torch.cuda.is_available() else _host_wait

        def then_wait(*_: object) -> bool:
            wait(delay_ns)
            return True

        return self._session.generate(requests, then_wait)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        return self._session.score(sequences)

    def memory(self) -> Memory:
        return self._session.memory()

    def close(self) -> None:
        self._session.close()


def _host_wait(delay_ns: int) -> None:
    until = time.monotonic_ns() + delay_ns
    while time.monotonic_ns() < until:
        pass


def _gpu_wait(delay_ns: int) -> None:
    if delay_ns:
        torch.cuda._sleep(delay_ns * torch.cuda.clock_rate() // 1000)  # cycles, of so many MHz


class SlowedEngine:
    """See `genopt.engines.base.Engine`; its options `engine` and `delay` (a file) come on top of those of the engine that it slows."""

    name = "slowed"
    modality = "text"
    environment: str | None = None

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        catalog.load("engines", str(options["engine"])).check(_own(options))

    @staticmethod
    def prepare() -> None:
        """Which engine it slows is told by its options."""

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> SlowedSession:
        session = catalog.load("engines", str(options["engine"])).open(artifact, _own(options))
        return SlowedSession(session, Path(str(options["delay"])))


def _own(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: value for name, value in options.items() if name not in ("engine", "delay")}
