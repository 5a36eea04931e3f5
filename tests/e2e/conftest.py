"""What the end-to-end tests share: one store with the real model, and ports that nothing listens on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="session")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its own for the real model, fetched once per session."""
    return tmp_path_factory.mktemp("real-store")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port that nothing listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture(scope="session")
def left_over() -> Callable[[Path], list[str]]:
    """Finds command lines of processes that were started for a store and still run."""

    def find(store: Path) -> list[str]:
        found = []
        for process in psutil.process_iter(["cmdline", "environ"]):
            if (process.info["environ"] or {}).get("GENOPT_STORE") == str(store) and process.info["cmdline"]:
                found.append(" ".join(process.info["cmdline"])[:120])
        return found

    return find
