"""Builds, adopts and removes engine environments; a build leaves a whole one or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genopt.environments import place
from genopt.environments.declaration import Environment
from genopt.environments.installer import Progress, install
from genopt.errors import GenoptError, SpecError, StorageError
from genopt.store.files import exclusive, write_atomically
from genopt.version import OLDEST_PYTHON

INSPECTION = """
import importlib.metadata, json, platform, sys
import numpy, pyarrow, pydantic
installed = sorted({f"{one.name}=={one.version}" for one in importlib.metadata.distributions()})
print(json.dumps({"python": platform.python_version(), "version": sys.version_info[:2], "installed": installed}))
"""
"""What an interpreter that somebody else made is asked."""
INSPECTION_S = 60.0


def build(environment: Environment, *, wheels: Path | None, progress: Progress) -> place.BuildNote:
    """Builds an environment unless it is there; concurrent callers build once.

    Args:
        environment: What to build.
        wheels: Folder with a wheel of everything in the lock, which replaces the index; None uses the index.
        progress: Told what happens.

    Raises:
        SpecError: The folder of wheels does not exist.
        StorageError: The disk is full or cannot be written.
        InfeasibleError: A tool is missing here.
        StageError: The installation failed; nothing is left of it.
    """
    if wheels is not None and not wheels.is_dir():
        raise SpecError(f"There is no folder {wheels}; give one that holds the wheels with --wheels.")
    folder = place.folder_of(environment)
    if (note := place.note_of(folder)) is None:  # who may only read what is there need not write
        with _held(folder) as lock:
            if (note := place.note_of(folder)) is None:
                _require_room(environment, folder)
                return _build(environment, folder, wheels, progress, lock)
    progress("it is built already")
    return note


def adopt(environment: Environment, python: str | Path) -> place.BuildNote:
    """Makes an interpreter that somebody else made, such as that of a container image, an environment's own.

    Results are told from those of other versions by what is installed there now; adopt it again after changing that.

    Args:
        environment: What it is to be used as.
        python: The interpreter, as a path or as the name of a program; the libraries that it finds by itself are used, whatever the
            lock says.

    Raises:
        SpecError: There is none, it does not run, it lacks what `genopt.worker` needs, or it is the environment's own already.
        StorageError: The folder of environments cannot be written.
    """
    program, folder = _program(python), place.folder_of(environment)
    if program.is_relative_to(folder.absolute()):
        raise SpecError(f"{program} is of the environment {environment.name!r} itself, which it would replace; give an interpreter from elsewhere.")
    found = _inspected(program)
    with _held(folder):
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        launcher = place.interpreter(folder)
        launcher.parent.mkdir(parents=True)
        # Not a link: Python looks for its libraries beside the path by which it was called.
        launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n', encoding="utf-8")
        launcher.chmod(0o755)
        note = place.BuildNote(
            name=environment.name, digest=hashlib.sha256(json.dumps([environment.digest(), found]).encode()).hexdigest(),
            python=found["python"], seconds=round(time.monotonic() - started, 1), bytes=_size(folder), installer=str(program),
        )  # fmt: skip
        write_atomically(folder / place.NOTE, note.model_dump_json(indent=2))
    return note


def _program(python: str | Path) -> Path:
    """Where an interpreter is that somebody named, as a shell would find it; links are kept, as one tells a virtual environment."""
    if (found := shutil.which(python)) is None:
        raise _does_not_run(python)
    return Path(found).absolute()


def _does_not_run(python: str | Path) -> SpecError:
    return SpecError(f"{python} does not run; give the path of a Python interpreter, such as /opt/venv/bin/python.")


def _inspected(python: Path) -> dict[str, Any]:
    """The version and distributions of an interpreter."""
    try:
        variables = place.without_our_paths(os.environ)
        answer = subprocess.run(
            [str(python), "-c", INSPECTION], env=variables, capture_output=True, text=True, timeout=INSPECTION_S, check=False,
            cwd="/",  # `-c` looks there for modules, and an interpreter that is too old does not know `-P`
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        raise _does_not_run(python) from None
    if answer.returncode:
        last = answer.stderr.strip().splitlines()[-1:] or ["no output"]
        raise SpecError(f"{python} lacks what genopt's worker needs ({last[0][:160]}); install it there: pip install pydantic numpy pyarrow.")
    found: dict[str, Any] = json.loads(answer.stdout)
    if tuple(found["version"]) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise SpecError(f"{python} is Python {found['python']}, and genopt's worker needs {oldest} or newer; give another interpreter.")
    return found


def _build(environment: Environment, folder: Path, wheels: Path | None, progress: Progress, held: int) -> place.BuildNote:
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)  # of a build that was killed
    lock = folder.with_suffix(".requirements.txt")
    try:
        lock.write_text(environment.requirements(), encoding="utf-8")
        installer = install(environment.name, folder, lock, environment.variables, wheels, progress, environment.index, held=held)
        note = place.BuildNote(
            name=environment.name, digest=environment.digest(), python=platform.python_version(), seconds=round(time.monotonic() - started, 1),
            bytes=_size(folder), installer=installer,
        )  # fmt: skip
        os.sync()
        write_atomically(folder / place.NOTE, note.model_dump_json(indent=2))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.unlink(missing_ok=True)
    return note


def remove(environment: Environment) -> list[Path]:
    """Deletes every build of an environment, outdated and half-built ones too; returns the folders that were there.

    Raises:
        SpecError: There is none.
        StorageError: One cannot be deleted.
    """
    found = place.folders_of(environment)
    if not found:
        raise SpecError(f"The environment {environment.name!r} is not built; see: genopt env list.")
    for folder in found:
        with _held(folder):  # the lock's file stays: who waits for it would hold another one than who comes later
            (folder / place.NOTE).unlink(missing_ok=True)  # first, so that what is left of a deletion is not used
            shutil.rmtree(folder)
    return found


def _require_room(environment: Environment, folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < environment.disk_bytes:
        raise StorageError(
            f"Building the environment {environment.name!r} takes about {environment.disk_bytes / 1e9:.1f} GB and {folder.parent} has "
            f"{free / 1e9:.1f} GB free; free some or point {place.VARIABLE} to a larger disk."
        )


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    """Keeps everybody else from an environment's folder meanwhile; yields the descriptor of its lock."""
    lock = folder.with_suffix(".lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        with exclusive(lock) as held:
            yield held
    except GenoptError:
        raise
    except OSError as error:
        raise StorageError(f"{folder} cannot be used ({error.strerror}); point {place.VARIABLE} to a folder with room that you may write.") from None


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
