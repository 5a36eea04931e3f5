"""Starting processes with the interpreter of the environment that they need, and ending them with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from genopt import bootstrap, catalog
from genopt.environments import place
from genopt.errors import OutOfMemoryError, StageCrashedError, StageError
from genopt.guardian import PARENT, SWEEP_S

WRITING_S = 0.5
"""What is asked where it is has this long to write it."""


def child_environment(threads: int | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: explicit thread count, no hub or tokenizer chatter, and a last word on where it was if it dies of a signal.

    CUDA numbers GPUs fastest first unless told otherwise, and NVML as they sit on the bus. Where GPUs differ, a child would run on another
    one than we, and Ray, read and count by the same number; so the order is ours even where the user set one.
    """
    quiet = {"PYTHONFAULTHANDLER": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    environment = {**os.environ, **quiet, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    environment.update(extra or {})
    return environment


def worker_command(environment: str | None) -> list[str]:
    """Starts `genopt.worker` with the interpreter of an environment, None being ours; its arguments follow.

    Raises:
        InfeasibleError: The environment is not built here.
    """
    return bootstrap.command(sys.executable, "genopt.worker") if environment is None else place.worker_command(environment)


def environment_of(engine: str) -> str | None:
    """The environment of an engine; ours for one that only children know, who then say what is wrong with it."""
    known = engine in catalog.names("engines")
    found: str | None = catalog.load("engines", engine).environment if known else None
    return found


def tell_where(process: subprocess.Popen[Any]) -> None:
    """Ends what hangs below a child so that it writes to its log where (Python's `faulthandler`, at SIGABRT); the rest is for `kill_tree`.

    What was started last goes first: who waits for it would end by its end, and all with them.
    """
    with contextlib.suppress(psutil.Error):
        for guardian in psutil.Process(process.pid).children():
            for below in reversed(guardian.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    below.send_signal(signal.SIGABRT)
                    below.wait(timeout=WRITING_S)


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kills a child and all that it started, and reaps the child.

    Its guardian does it, because it alone finds what left the child's process group. It goes on where the child itself is
    already dead or does not end in time.
    """
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SWEEP_S + 1)
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)


def death_error(what: str, code: int, log: Path) -> StageError:
    """What is told of a process that ended by itself.

    Args:
        what: Names it at the beginning of a sentence.
        code: Its exit code, or the negative number of the signal that ended it.
        log: What it wrote.
    """
    if code == -signal.SIGKILL:
        return OutOfMemoryError(f"{what} was killed, most likely for lack of memory; free memory or use a smaller model (log: {log.name}).")
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return StageCrashedError(f"{what} {how}; see {log.name} in the run's logs for the cause.")
