"""What every replica of an engine answers to Serve, whatever the engine makes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Protocol

from genopt.process import EngineProcess
from genopt.serving.engine_thread import EngineLoad
from genopt.serving.manifest import ServeArguments
from genopt.serving.metrics import EngineMetrics
from genopt.serving.tether import Tether


class Supervised(Protocol):
    """What is needed of a scheduler, whatever it schedules; see `genopt.serving.batching.Scheduler`."""

    @property
    def load(self) -> EngineLoad:
        """See `Scheduler.load`."""

    async def check(self, stall_s: float) -> None:
        """See `Scheduler.check`."""

    def close(self) -> None:
        """See `Scheduler.close`."""


def log_of(arguments: ServeArguments) -> Path:
    """File that a replica's engine writes into."""
    return Path(arguments.log_folder or tempfile.gettempdir(), f"serve-{arguments.variant.name}-{os.getpid()}.log")


class ServedEngine:
    """An engine's process and what schedules requests on it; its replica ends with it.

    Args:
        arguments: What is served.
        session: The open engine.
        scheduler: Of requests on it.
        metrics: Told its load.
    """

    def __init__(self, arguments: ServeArguments, session: EngineProcess, scheduler: Supervised, metrics: EngineMetrics) -> None:
        self._stall_s, self._supervised, self._metrics = arguments.stall_s, scheduler, metrics
        self._tether = Tether(session)

    @property
    def engine_gone(self) -> bool:
        """Whether the engine has ended, so that this replica is about to."""
        return self._tether.engine_gone

    async def ready(self) -> bool:
        """Answers, which is all that readiness asks: the constructor opened and warmed the engine."""
        return True

    async def load(self) -> EngineLoad:
        """What was done and is under way."""
        return self._supervised.load

    async def check_health(self) -> None:
        """Called by Serve; raising lets it replace this replica.

        Raises:
            GenoptError: The engine's process is dead or does not advance.
        """
        self._metrics.note(self._supervised.load)  # what is not told again is forgotten
        await self._supervised.check(self._stall_s)

    def __del__(self) -> None:
        # Serve calls this when it stops a replica; it also runs when a constructor failed before there was an engine.
        if "_tether" in vars(self):
            self._tether.release()
            self._supervised.close()
