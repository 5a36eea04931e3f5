"""A run's folder: spec, environment, journal, records, logs, reports."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genopt.errors import RunFolderError
from genopt.store.append_log import append_line
from genopt.store.files import storage_error, write_atomically
from genopt.store.lease import Holder, Lease


class RunFolder:
    """Reads and writes one run folder; the journal has one writer, the driver.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lease: Lease | None = None

    @staticmethod
    def require_new(path: Path) -> None:
        """Makes sure that a run folder can be made there.

        Raises:
            RunFolderError: Something is already there; nothing is overwritten.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunFolderError(f"{path} already exists; choose another --out, or continue that run with `genopt resume {path}`.")

    @classmethod
    def create(cls, path: Path, spec_yaml: str, environment: Mapping[str, Any]) -> RunFolder:
        """Makes a new run folder.

        Raises:
            RunFolderError: Something is already there; nothing is overwritten.
            StorageError: It cannot be written.
        """
        cls.require_new(path)
        try:
            for name in ("records", "profile", "logs", "data"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from None
        write_atomically(path / "environment.json", json.dumps(environment, indent=2))
        write_atomically(path / "spec.yaml", spec_yaml)
        return cls(path)

    @classmethod
    def existing(cls, path: Path) -> RunFolder:
        """Opens the folder of an earlier run.

        Raises:
            RunFolderError: It is missing or not a run folder.
        """
        if not (path / "spec.yaml").is_file():
            raise RunFolderError(f"{path} is not a run folder (it has no spec.yaml); give the folder that `genopt optimize` printed.")
        return cls(path)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Makes this process the folder's one writer, and drops a last journal line that a crash cut off.

        A writer that died is succeeded: at once where it ran on this machine, after `genopt.store.lease.STALE_S` without
        a sign of life where it ran on another. One that was only suspended finds out and writes nothing more.

        Raises:
            RunFolderError: Another process writes to it, on this machine or another.
            StorageError: It cannot be written.
        """
        lease = Lease(self._lease_folder)
        other = lease.take()
        if other is not None:
            raise RunFolderError(f"Another process works on {self.path} ({other}); wait until it ends, or end it first.")
        self._lease = lease
        try:
            self._mend()
            yield
        finally:
            self._lease = None
            lease.release()

    def _mend(self) -> None:
        """Drops a last line that was cut off, so that what follows does not continue it."""
        content = self._journal.read_bytes() if self._journal.exists() else b""
        whole, _, last = content.removesuffix(b"\n").rpartition(b"\n")
        if last and (not content.endswith(b"\n") or _event(last) is None):
            write_atomically(self._journal, whole + b"\n" if whole else b"")

    @property
    def _journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def _lease_folder(self) -> Path:
        return self.path / ".lease"

    def writer(self) -> Holder | None:
        """The living process that works on the run; see `Lease.holder`."""
        return Lease(self._lease_folder).holder()

    def _require_held(self) -> None:
        """A writer that was suspended for so long that another took over must not write beside it."""
        if self._lease is not None and self._lease.lost:
            raise RunFolderError(f"This process was suspended for so long that another one continues {self.path}; let that one end.")

    @property
    def logs(self) -> Path:
        """Folder of the stages' logs."""
        return self.path / "logs"

    def append(self, event: str, **content: Any) -> None:
        """Appends one event to the journal, durably; where this raises there is nothing of it, so that later events can follow.

        Raises:
            RunFolderError: Another process has taken over meanwhile.
            StorageError: The disk is full or the folder cannot be written.
        """
        self._require_held()
        line = json.dumps({"time": time.time(), "event": event, **content}, allow_nan=False)
        append_line(self._journal, line.encode() + b"\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """The journal's events in order; a last line that was cut off by a crash is left out.

        Raises:
            RunFolderError: Another line cannot be read.
        """
        lines = self._journal.read_bytes().splitlines() if self._journal.exists() else []
        for number, line in enumerate(lines, start=1):
            event = _event(line)
            if event is not None:
                yield event
            elif number < len(lines):
                raise RunFolderError(
                    f"Line {number} of {self._journal} is damaged; put an undamaged copy back, or keep what precedes it: "
                    f"sed -i '{number},$d' {self._journal}."
                )

    def environment(self) -> dict[str, Any]:
        """What the run ran on."""
        content: dict[str, Any] = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        return content

    def write_records(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes one Parquet table of records, with a column for whatever any of them has; an empty one is not written."""
        if not rows:
            return
        self._require_held()
        buffer = pa.BufferOutputStream()
        columns = dict.fromkeys(chain.from_iterable(rows))  # of rows alone, the first one's keys would be all
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), buffer)
        write_atomically(self.path / "records" / f"{name}.parquet", buffer.getvalue().to_pybytes())

    def known_records(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table that an earlier session wrote; none where it wrote none."""
        path = self.path / "records" / f"{name}.parquet"
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.exists() else []
        return rows

    def read_records(self, name: str) -> pa.Table:
        """Reads one Parquet table of records.

        Raises:
            RunFolderError: The run has no such table.
        """
        path = self.path / "records" / f"{name}.parquet"
        if not path.exists():
            known = ", ".join(sorted(item.stem for item in (self.path / "records").glob("*.parquet"))) or "none yet"
            raise RunFolderError(f"{self.path} has no records named {name!r}; it has {known}.")
        return pq.read_table(path)


def _event(line: bytes) -> dict[str, Any] | None:
    """One line of a journal; None where it is damaged."""
    try:
        content = json.loads(line)
    except ValueError:  # no JSON, or not even UTF-8
        return None
    return content if isinstance(content, dict) and "event" in content and "time" in content else None
