"""Every exception that genopt raises on purpose.

    GenoptError                     exit 1
    ├── SpecError                   exit 2   a flag, key or value that cannot be used
    │   ├── ModelError              exit 2   a model that cannot be found, read or optimized
    │   ├── DataError               exit 2   evaluation or calibration data that cannot be used
    │   └── RunFolderError          exit 2   a run folder that exists, is missing or is not one
    ├── StorageError                exit 1   the store or run folder cannot be written or read
    ├── ClusterError                exit 1   a Ray cluster that does not answer or cannot serve the run
    ├── EndpointError               exit 1   a served model that cannot be measured: it does not answer, or only with errors
    ├── NotOpenError                exit 1   a vote, or a question about names, at the wrong time
    ├── InfeasibleError             exit 1   this candidate cannot exist here (hardware, rule, missing tool)
    ├── StageError                  exit 1   a stage ended without a result
    │   ├── StageTimeoutError       exit 1   it passed its deadline and was killed
    │   ├── StageCrashedError       exit 1   its process died
    │   └── OutOfMemoryError        exit 1   it ran out of memory
    ├── NoWinnerError               exit 3   no candidate passed; the baseline is kept
    ├── BudgetError                 exit 4   the budget ends before a baseline exists
    ├── DeploymentError             exit 5   a deployment was refused or rolled back
    └── InterruptedRunError         exit 130 Ctrl-C; a report was written where there was a baseline

A message is one sentence that ends with what to do. Constructors take the message and an optional
dict of details and nothing else, so that every exception survives pickling between processes.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import ClassVar


class GenoptError(Exception):
    """Base of all errors that genopt raises on purpose.

    Args:
        message: One sentence with the cause and the remedy.
        details: Plain values for logs and JSON output.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message, dict(details or {}))
        self.message = message
        self.details: dict[str, object] = dict(details or {})

    def __str__(self) -> str:
        return self.message


class SpecError(GenoptError):
    """A flag, key or value that cannot be used."""

    exit_code = 2


class ModelError(SpecError):
    """A model that cannot be found, read or optimized."""


class DataError(SpecError):
    """Evaluation or calibration data that cannot be used."""


class RunFolderError(SpecError):
    """A run folder that already exists, is missing, or is not a run folder."""


class StorageError(GenoptError):
    """The store or the run folder cannot be written or read."""


class ClusterError(GenoptError):
    """A Ray cluster that does not answer or cannot serve the run."""


class EndpointError(GenoptError):
    """A served model that cannot be measured: it does not answer, or only with errors."""


class NotOpenError(GenoptError):
    """A vote, or a question about names, at the wrong time."""


class InfeasibleError(GenoptError):
    """A candidate that cannot exist here: hardware, a rule, or a missing tool."""


class StageError(GenoptError):
    """A stage that ended without a result."""


class StageTimeoutError(StageError):
    """A stage that passed its deadline and was killed."""


class StageCrashedError(StageError):
    """A stage whose process died."""


class OutOfMemoryError(StageError):
    """A stage that ran out of memory."""


class NoWinnerError(GenoptError):
    """No candidate passed; the baseline is kept."""

    exit_code = 3


class BudgetError(GenoptError):
    """The budget ends before a baseline exists."""

    exit_code = 4


class DeploymentError(GenoptError):
    """A deployment that was refused or rolled back."""

    exit_code = 5


class InterruptedRunError(GenoptError):
    """The run was interrupted."""

    exit_code = 130


_WIRE_TYPES: dict[str, type[GenoptError]] = {
    kind.__name__: kind
    for kind in (
        GenoptError, SpecError, ModelError, DataError, RunFolderError, StorageError, ClusterError, EndpointError, NotOpenError,
        InfeasibleError, StageError, StageTimeoutError, StageCrashedError, OutOfMemoryError, NoWinnerError, BudgetError,
        DeploymentError, InterruptedRunError,
    )
}  # fmt: skip


_STORAGE = {
    errno.ENOSPC: "full; free some space or point --store (GENOPT_STORE) elsewhere",
    errno.EDQUOT: "full; free some space or point --store (GENOPT_STORE) elsewhere",
    errno.EROFS: "read-only; make the store writable on every node",
}  # fmt: skip
"""What a stage that finds no room says; another node may have it."""


def to_wire(error: BaseException) -> dict[str, object]:
    """Describes an exception as plain JSON values, to cross a process boundary."""
    if isinstance(error, GenoptError):
        return {"type": type(error).__name__, "message": error.message, "details": error.details}
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return {"type": "StorageError", "message": f"The disk of this node is {_STORAGE[error.errno]}.", "details": {}}
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return {"type": "OutOfMemoryError", "message": "The stage ran out of memory; use a smaller model or batch.", "details": {}}
    return {"type": "StageError", "message": f"{type(error).__name__}: {error}".splitlines()[0], "details": {}}


def _is_torch_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch found no room, told by its words: importing it here would cost every process seconds."""
    return isinstance(error, RuntimeError) and (type(error).__name__ == OutOfMemoryError.__name__ or "can't allocate memory" in str(error))


def from_wire(payload: Mapping[str, object]) -> GenoptError:
    """Rebuilds the exception that `to_wire` described; an unknown type becomes a `StageError`."""
    kind = _WIRE_TYPES.get(str(payload.get("type")), StageError)
    details = payload.get("details")
    return kind(str(payload.get("message", "unknown failure")), details if isinstance(details, dict) else None)
