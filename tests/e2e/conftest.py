"""What the end-to-end tests share: one store with the real model, and one run of the quickstart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from genopt.testing.ports import unused_port

Quickstart = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def real_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of its own for the real model, fetched once per session."""
    return tmp_path_factory.mktemp("real-store")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory, real_store: Path) -> Quickstart:
    """Folder of a run as a newcomer starts it, and how the command ended; shared, as it takes minutes."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "genopt", "quickstart", "--no-wait", "--port", str(unused_port()), "--out", "run"]
    command += ["--include", "ort-int8-g32", "--max-trials", "1"]  # one of the catalogue and one that is searched; the rest costs minutes
    environment = {**os.environ, "GENOPT_STORE": str(real_store), "RAY_ADDRESS": "local"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    return folder / "run", done


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
