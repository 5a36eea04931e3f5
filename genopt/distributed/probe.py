"""What a node says about itself, and what it can reach: the questions of `genopt doctor`."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

from genopt.environments import place
from genopt.errors import GenoptError
from genopt.measure.machine import SHARED_MEMORY, Problem, check_machine, environment, hardware
from genopt.plan import Record
from genopt.store.artifacts import default_root
from genopt.store.remote import Remote
from genopt.store.shared import is_shared, open_root

CONNECT_S = 2.0
AT_ONCE = 16
"""Connections that a node tries at the same time."""
NOTES = "doctor"
"""Folder of the store for what nodes write to see whether the others read it."""
Target = tuple[str, int]


class NodeFacts(Record):
    """A node, or this machine where there is no cluster.

    Attributes:
        versions: Of Python, Ray, genopt (with the digest of its source) and the libraries that decide the bytes of artifacts.
        hardware: See `genopt.measure.machine.hardware`.
        free_bytes: Of the store's disk, of the folder for temporary files and of shared memory.
        environments: State of every engine environment, by name.
        engines: Digests of what those consist of that can be used, by name.
        token: Whether its Ray asks for a token.
        problems: What `genopt.measure.machine.check_machine` found.
    """

    versions: dict[str, str]
    hardware: dict[str, Any]
    free_bytes: dict[str, int]
    environments: dict[str, str]
    engines: dict[str, str] = {}
    token: bool
    problems: tuple[Problem, ...]


class Note(Record):
    """What a node wrote to the store or read there: a digest, or why it could not."""

    sha256: str = ""
    error: str = ""


def facts(location: str) -> NodeFacts:
    """What this machine is.

    Args:
        location: The store.
    """
    software, root = environment(), _root(location)
    versions = {"python": software["python"], "genopt": f"{software['genopt']}+{_source_digest()[:7]}", **software["packages"]}
    shared_memory = _free(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else 0
    free = {"store": _free(root), "temporary": _free(Path(tempfile.gettempdir())), "shared_memory": shared_memory}
    return NodeFacts(
        versions=versions, hardware=hardware(), free_bytes=free, environments=place.states(), engines=place.identities(),
        problems=tuple(check_machine(root)), token=get_authentication_mode() == AuthenticationMode.TOKEN,
    )  # fmt: skip


def write_note(location: str, name: str) -> Note:
    """Writes something that nobody can guess to the store."""
    content = secrets.token_bytes(32)
    try:
        open_root(location)
        _remote(location).write(f"{NOTES}/{name}", content)
    except GenoptError as error:
        return Note(error=str(error))
    return Note(sha256=hashlib.sha256(content).hexdigest())


def read_notes(location: str, names: Sequence[str]) -> dict[str, Note]:
    """What the store has under names, as this machine sees it; no digest where it has nothing."""
    found = {}
    for name in names:
        try:
            content = _remote(location).read(f"{NOTES}/{name}")
        except GenoptError as error:
            found[name] = Note(error=str(error))
            continue
        found[name] = Note(sha256=hashlib.sha256(content).hexdigest() if content is not None else "")
    return found


def remove_notes(location: str, names: Sequence[str]) -> None:
    """Removes what was written.

    Raises:
        StorageError: The store cannot be written.
    """
    _remote(location).remove(*(f"{NOTES}/{name}" for name in names))


def unreachable(targets: Sequence[Target]) -> list[Target]:
    """Those to which this machine cannot connect."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [target for target, reached in zip(targets, pool.map(_connects, targets), strict=True) if not reached]


class NodeProbe:
    """The questions as an actor of a node.

    Args:
        location: The store.
    """

    def __init__(self, location: str) -> None:
        self._location = location

    def facts(self) -> dict[str, Any]:
        """See `facts`."""
        return facts(self._location).model_dump(mode="json")

    def write(self, name: str) -> dict[str, Any]:
        """See `write_note`."""
        return write_note(self._location, name).model_dump(mode="json")

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """See `read_notes`."""
        return {name: note.model_dump(mode="json") for name, note in read_notes(self._location, names).items()}

    def unreachable(self, targets: Sequence[Target]) -> list[Target]:
        """See the function of this name."""
        return unreachable(targets)

    def now(self) -> float:
        """The node's clock, in Unix seconds."""
        return time.time()


def _root(location: str) -> Path:
    """The folder of this machine that stands for a store."""
    return default_root() if is_shared(location) else Path(location.removeprefix("file://"))


def _remote(location: str) -> Remote:
    return Remote(location if "://" in location else Path(location).absolute().as_uri())


def _free(path: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())).free


def _source_digest() -> str:
    """Tells checkouts of one version apart."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _connects(target: Target) -> bool:
    try:
        socket.create_connection(target, timeout=CONNECT_S).close()
    except OSError:
        return False
    return True
