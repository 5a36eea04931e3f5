"""Durable files: a reader sees either the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from genopt.errors import GenoptError, ModelError, StorageError


def storage_error(path: Path, error: OSError, setting: str | None = None) -> GenoptError:
    """Maps an operating system error about a place that is written to one sentence with the remedy.

    Args:
        path: What was written.
        error: What happened.
        setting: What chooses the place; None for the store and runs.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"No space is left for {path}; free some or point {setting or '--store (GENOPT_STORE)'} to a larger disk.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path} cannot be written; choose a writable folder with {setting or '--store or --out'}.")
    return StorageError(f"{path} cannot be used ({error.strerror or error}); choose another folder with {setting or '--store or --out'}.")


def read_error(path: Path, error: OSError) -> ModelError:
    """Maps an operating system error about a model that is only read to one sentence with the remedy.

    Args:
        path: The model, for errors that do not name a file.
        error: What happened.
    """
    return ModelError(f"{error.filename or path} cannot be read ({error.strerror or error}); check its permissions and its disk, or fetch it again.")


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Writes a file under a temporary name, fsyncs it and renames it.

    Args:
        path: The file.
        content: All of it.
        mode: Its permissions, less the process's umask.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise storage_error(path, error) from None


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Holds an exclusive advisory lock on a file while the block runs; waits for it.

    Yields the lock's file descriptor: a process that inherits it keeps the lock for as long as it runs, also without us.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    except OSError as error:
        raise storage_error(path, error) from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream.fileno()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes.

    Raises:
        OSError: It cannot be read; it is named, which errors of reading an open file leave out.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
