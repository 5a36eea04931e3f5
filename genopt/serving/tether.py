"""Ends a replica with its engine: Serve's routers drop a process that is gone at once, and one that refuses everything only after three checks."""

from __future__ import annotations

import logging
import os
import threading

from genopt.process import EngineProcess

TOLD_S = 0.2
"""What callers of requests under way are given to hear that they failed."""

_LOG = logging.getLogger("ray.serve")


class Tether:
    """Ends this process soon after that of an engine.

    Args:
        engine: The open engine.
    """

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._released, self._gone = threading.Event(), threading.Event()
        threading.Thread(target=self._follow, name="engine-tether", daemon=True).start()

    @property
    def engine_gone(self) -> bool:
        """Whether the engine has ended, so that this process is about to."""
        return self._gone.is_set()

    def release(self) -> None:
        """The engine is about to be ended on purpose."""
        self._released.set()

    def _follow(self) -> None:
        code = self._engine.wait()
        self._gone.set()
        if not self._released.wait(TOLD_S):
            _LOG.error("The engine's process ended (%s); this replica ends too, so that Serve starts another.", code)
            logging.shutdown()
            os._exit(1)  # from a thread nothing else ends a process whose loop is busy
