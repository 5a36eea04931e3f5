"""Why vLLM did not start: its engine runs in a process of its own, and says no more to ours than that it failed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from genopt.errors import InfeasibleError, OutOfMemoryError, StageError

LOGGING = Path(__file__).with_name("vllm_logging.json")
"""How vLLM, while it is imported, is told to log: what it does and when to standard error, and exceptions to `CauseHandler`."""
VARIABLE = "GENOPT_VLLM_CAUSES"
"""Names the file of a process's exceptions."""
KILLED = re.compile(r"Failed core proc\(s\): \{.*: -9\b")
"""As vLLM says that its process was ended by SIGKILL, which can leave no word of its own."""


class Cause(NamedTuple):
    """An exception of any process.

    Attributes:
        kinds: Names of its class and of those above, the nearest first.
        message: Its first line.
    """

    kinds: tuple[str, ...]
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """That of an exception at hand."""
        message = next(iter(str(error).splitlines()), "")[:200].rstrip(".")
        return cls(tuple(kind.__name__ for kind in type(error).__mro__), message)


class CauseHandler(logging.Handler):
    """Appends each exception that is logged to the file that `VARIABLE` names, if any, as a line of JSON."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        path = os.environ.get(VARIABLE)
        if path and record.exc_info and record.exc_info[1] is not None:
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(Cause.of(record.exc_info[1])) + "\n")


class Causes:
    """The exceptions that vLLM's processes log while it starts.

    Args:
        path: File that `CauseHandler` writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def first(self) -> Cause | None:
        """The one that came before all others, which follow from it; None where nothing failed."""
        if not self._path.exists():
            return None
        kinds, message = json.loads(self._path.read_text(encoding="utf-8").splitlines()[0])
        return Cause(tuple(kinds), message)


@contextlib.contextmanager
def logged_causes() -> Iterator[Causes]:
    """Has this process, and those that it starts, log exceptions where they can be read, if they log as `LOGGING` says."""
    with tempfile.TemporaryDirectory(prefix="genopt-vllm-") as folder:
        path = Path(folder) / "causes.jsonl"
        os.environ[VARIABLE] = str(path)
        try:
            yield Causes(path)
        finally:
            del os.environ[VARIABLE]


def refusal(logged: Cause | None, raised: Exception) -> InfeasibleError | OutOfMemoryError | StageError:
    """What is told where vLLM did not start.

    Args:
        logged: What its processes said first, if anything.
        raised: What it raised here.
    """
    if KILLED.search(str(raised)):  # what was logged before is not why
        return OutOfMemoryError("vLLM's process was killed while it started, most likely for lack of memory; free memory or use a smaller model.")
    cause = logged or Cause.of(raised)
    if "OutOfMemoryError" in cause.kinds:
        return OutOfMemoryError("vLLM found no room for the weights; use fewer bits or a larger GPU.")
    if {"ValueError", "NotImplementedError"}.isdisjoint(cause.kinds):
        return StageError(f"vLLM did not start ({cause.kinds[0]}: {cause.message}); see the session's log for the cause.")
    if "memory" in cause.message or "KV cache" in cause.message:
        return OutOfMemoryError(f"vLLM has too little room for keys and values ({cause.message}); free memory, use fewer bits or lower max_context.")
    return InfeasibleError(f"vLLM cannot take this model ({cause.message}); use another engine for it.")
