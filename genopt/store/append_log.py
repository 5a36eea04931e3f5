"""Lines of JSON that are durable one by one: whoever was told that a line is written will find it after any crash."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genopt.errors import StorageError
from genopt.store.files import storage_error, sync_folder


class AppendLog:
    """Writes a log; threads may share it, and the caller makes sure that no other process writes to it.

    Args:
        path: The file; made where it is missing. A last line that a crash cut off is dropped.

    Raises:
        StorageError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            whole = content.rfind(b"\n") + 1
            with path.open("ab") as stream:
                if whole < len(content):
                    stream.truncate(whole)
                os.fsync(stream.fileno())
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, error) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is on the disk when this returns, and there is nothing of it where this raises.

        Raises:
            StorageError: It could not be written.
        """
        line = json.dumps(dict(record), allow_nan=False).encode() + b"\n"
        with self._lock:
            append_line(self.path, line)


def append_line(path: Path, line: bytes) -> None:
    """Appends a line to a file; it is on the disk when this returns, and there is nothing of it where this raises.

    Args:
        path: The file; made where it is missing. Nobody else may write to it meanwhile.
        line: With its end.

    Raises:
        StorageError: It could not be written.
    """
    try:
        with path.open("ab", buffering=0) as stream:
            size = stream.tell()
            try:
                _write(stream.fileno(), line)
            except OSError:
                stream.truncate(size)
                raise
    except OSError as error:
        raise storage_error(path, error) from None


def _write(descriptor: int, line: bytes) -> None:
    left = line
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log in order, also while another process appends; a last line that is not complete is left out.

    Raises:
        StorageError: It cannot be read, or a complete line is not a JSON object.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise storage_error(path, error) from None
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise StorageError(f"Line {number} of {path} is damaged; remove that line, the others are still good.")
        yield record
