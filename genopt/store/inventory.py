"""What a store holds, what of it is damaged, and what may go: for folders and object stores alike."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from pathlib import Path

from pydantic import ValidationError

from genopt.plan import Artifact, Record
from genopt.store.folders import is_hidden
from genopt.store.remote import Remote, RemoteFile
from genopt.store.shared import is_shared, open_root

UNFINISHED = ("building", "checkpoints")
UNFINISHED_S = 86_400.0
"""What is still being built after this time is left over from a process that died."""


class Stored(Record):
    """One artifact of a store.

    Attributes:
        digest: Of its bytes.
        bytes: Size of its files.
        changed: When its last file was written, in Unix seconds.
        steps: How many steps lead to it.
        traits: What it is, as far as a step says so.
        problem: What is wrong with it, or an empty text.
    """

    digest: str
    bytes: int
    changed: float
    steps: int
    traits: tuple[str, ...]
    problem: str = ""


class Inventory:
    """A store as a whole.

    Args:
        location: Folder or URI; None takes this user's own.

    Raises:
        StorageError: It cannot be used.
    """

    def __init__(self, location: str | None) -> None:
        self.location = location if is_shared(location) and location is not None else open_root(location).as_uri()
        self._remote = Remote(self.location)

    def artifacts(self) -> list[Stored]:
        """All artifacts, the latest first.

        Raises:
            StorageError: The store does not answer.
        """
        steps: dict[str, list[Artifact]] = defaultdict(list)
        for _, artifact in self._steps():
            if artifact is not None:
                steps[artifact.digest].append(artifact)
        found = [
            Stored(
                digest=digest, bytes=sum(one.bytes for one in files), changed=max(one.changed for one in files), steps=len(steps[digest]),
                traits=tuple(sorted({trait for one in steps[digest] for trait in one.traits})),
            ) for digest, files in self._files().items()
        ]  # fmt: skip
        return sorted(found, key=lambda one: -one.changed)

    def verify(self) -> list[Stored]:
        """Reads every artifact and says of each what is wrong with it.

        Raises:
            StorageError: The store does not answer.
        """
        files = self._files()
        return [one.model_copy(update={"problem": self._problem(one.digest, files[one.digest])}) for one in self.artifacts()]

    def remove(self, digests: set[str]) -> int:
        """Removes artifacts, and the steps that lead to them or to none; returns the bytes of the artifacts.

        Raises:
            StorageError: The store cannot be written.
        """
        files, freed = self._files(), 0
        there = files.keys() - digests
        self._remote.remove(*(name for name, artifact in self._steps() if artifact is None or artifact.digest not in there))
        for digest in digests & files.keys():
            self._remote.remove(f"manifests/{digest}.json", f"verified/{digest}.json", *(one.name for one in files[digest]))
            self._remote.remove_emptied(f"artifacts/{digest}")
            freed += sum(one.bytes for one in files[digest])
        return freed

    def superfluous(self, *, older_than_s: float | None, keep_bytes: int | None, now: float | None = None) -> list[Stored]:
        """Artifacts that may go: those that no step leads to, those that are old, and the oldest beyond a size.

        Args:
            older_than_s: Age in seconds from which on they may go; None sets none.
            keep_bytes: Most bytes to keep; None sets no limit.
            now: Unix time; the present unless given.
        """
        until, kept, going = now if now is not None else time.time(), 0, []
        for one in self.artifacts():
            old = older_than_s is not None and until - one.changed > older_than_s
            large = keep_bytes is not None and kept + one.bytes > keep_bytes
            orphaned = one.steps == 0 and until - one.changed > UNFINISHED_S
            if old or large or orphaned:
                going.append(one)
            else:
                kept += one.bytes
        return going

    def sweep(self, now: float | None = None) -> int:
        """Removes what processes that died left behind; returns its bytes.

        Raises:
            StorageError: The store cannot be written.
        """
        until = now if now is not None else time.time()
        left = [one for folder in UNFINISHED for one in self._remote.files(folder) if until - one.changed > UNFINISHED_S]
        self._remote.remove(*(one.name for one in left))
        return sum(one.bytes for one in left)

    def _files(self) -> dict[str, list[RemoteFile]]:
        """The files of each artifact."""
        found: dict[str, list[RemoteFile]] = defaultdict(list)
        for one in self._remote.files("artifacts"):
            found[Path(one.name).parts[1]].append(one)
        return found

    def _steps(self) -> list[tuple[str, Artifact | None]]:
        """The records of steps by name; None where one is damaged."""
        found: list[tuple[str, Artifact | None]] = []
        for one in self._remote.files("steps"):
            content = self._remote.read(one.name)
            try:
                found.append((one.name, Artifact.model_validate_json(content or b"")))
            except ValidationError:
                found.append((one.name, None))
        return found

    def _problem(self, digest: str, files: list[RemoteFile]) -> str:
        content = hashlib.sha256()
        for one in sorted(files, key=lambda file: Path(file.name)):
            name = Path(one.name).relative_to("artifacts", digest)
            if not is_hidden(name):
                content.update(f"{name.as_posix()}\0{self._remote.sha256(one.name)}\n".encode())
        if content.hexdigest() == digest:
            return ""
        manifest = self._remote.read(f"manifests/{digest}.json")
        there = {one.name.removeprefix(f"artifacts/{digest}/"): one.bytes for one in files}
        missing = sorted(json.loads(manifest).keys() - there.keys()) if manifest is not None else []
        return f"{missing[0]} is missing" if missing else "its bytes are not those that its name says"
