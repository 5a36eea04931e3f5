"""Every error keeps its type, message and details between processes."""

from __future__ import annotations

import errno
import json
import os
import pickle

import pytest

from genopt import errors
from genopt.errors import GenoptError, from_wire, to_wire


def tree(kind: type[GenoptError]) -> list[type[GenoptError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


ALL = tree(GenoptError)
EXIT_CODES = {
    "GenoptError": 1, "SpecError": 2, "ModelError": 2, "DataError": 2, "RunFolderError": 2, "StorageError": 1, "ClusterError": 1,
    "EndpointError": 1, "NotOpenError": 1, "InfeasibleError": 1, "StageError": 1, "StageTimeoutError": 1, "StageCrashedError": 1,
    "OutOfMemoryError": 1,
    "NoWinnerError": 3, "BudgetError": 4, "DeploymentError": 5, "InterruptedRunError": 130,
}  # fmt: skip


def test_exit_codes_are_the_documented_ones() -> None:
    assert {kind.__name__: kind.exit_code for kind in ALL if kind.__module__ == errors.__name__} == EXIT_CODES


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind: type[GenoptError]) -> None:
    loaded = pickle.loads(pickle.dumps(kind("It broke; mend it.", {"node": "a", "bytes": 3})))
    assert (type(loaded), loaded.message, loaded.details) == (kind, "It broke; mend it.", {"node": "a", "bytes": 3})
    assert str(loaded) == loaded.message


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire(kind: type[GenoptError]) -> None:
    rebuilt = from_wire(json.loads(json.dumps(to_wire(kind("It broke; mend it.", {"node": "a"})))))
    assert (type(rebuilt), rebuilt.message, rebuilt.details) == (kind, "It broke; mend it.", {"node": "a"})


def test_details_default_to_nothing_and_are_a_copy() -> None:
    details = {"a": 1}
    error = GenoptError("It broke; mend it.", details)
    details["a"] = 2
    assert error.details == {"a": 1}
    assert GenoptError("It broke; mend it.").details == {}


def test_a_foreign_error_becomes_a_stage_error_of_one_line() -> None:
    rebuilt = from_wire(to_wire(ValueError("first\nsecond")))
    assert type(rebuilt) is errors.StageError
    assert str(rebuilt) == "ValueError: first"


def test_running_out_of_memory_is_recognized() -> None:
    assert type(from_wire(to_wire(MemoryError()))) is errors.OutOfMemoryError
    torch_error = type("OutOfMemoryError", (RuntimeError,), {})  # as PyTorch's is
    assert type(from_wire(to_wire(torch_error("CUDA out of memory. Tried to allocate 2.00 GiB.")))) is errors.OutOfMemoryError
    on_cpus = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
    assert type(from_wire(to_wire(on_cpus))) is errors.OutOfMemoryError
    assert type(from_wire(to_wire(RuntimeError("shapes do not fit")))) is errors.StageError


@pytest.mark.parametrize("payload", [{}, {"type": "NoSuchError", "message": "x"}, {"type": None, "details": "none"}])
def test_an_unknown_payload_is_still_an_error(payload: dict[str, object]) -> None:
    assert type(from_wire(payload)) is errors.StageError


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "full; free some space"), (errno.EDQUOT, "--store"), (errno.EROFS, "read-only")])
def test_a_disk_without_room_crosses_as_a_storage_error_with_its_remedy(number: int, words: str) -> None:
    found = from_wire(to_wire(OSError(number, os.strerror(number))))
    assert isinstance(found, errors.StorageError)
    assert words in str(found)


def test_another_error_of_the_operating_system_stays_a_stage_error() -> None:
    assert type(from_wire(to_wire(FileNotFoundError(errno.ENOENT, "no such file")))) is errors.StageError
