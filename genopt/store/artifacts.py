"""Content-addressed artifacts: a step key finds work, a digest names bytes.

Layout below the root: `artifacts/<digest>/` (the files), `steps/<step key>.json` (which digest a
step produced, and its manifest), `locks/`, `building/` (temporary).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from genopt.errors import StorageError
from genopt.plan import Artifact
from genopt.store.files import exclusive, file_sha256, storage_error, sync_folder, write_atomically


def default_root() -> Path:
    """`$GENOPT_STORE`, else `genopt` under the user's cache folder."""
    configured = os.environ.get("GENOPT_STORE")
    if configured:
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "genopt").absolute()


def open_root(location: str | None) -> Path:
    """The store's folder, created and proven writable.

    Raises:
        StorageError: It is not a folder that this machine can write.
    """
    if location is not None and "://" in location and not location.startswith("file://"):
        raise StorageError(f"The store {location} is not a folder; give a local or shared folder as path or file:// URI.")
    root = Path(location.removeprefix("file://")).expanduser().absolute() if location else default_root()
    write_atomically(root / ".writable", b"")
    return root


def step_key(parent: str, technique: str, version: int, params: Mapping[str, object], context: Mapping[str, object]) -> str:
    """Digest over everything that can change a step's bytes: parent, technique, parameters, libraries, calibration, seed."""
    content = {"parent": parent, "technique": technique, "version": version, "params": dict(params), "context": dict(context)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def folder_digest(folder: Path) -> tuple[str, int]:
    """Digest over the sorted list of (relative name, sha256) of a folder's files, and their total size in bytes."""
    digest, size = hashlib.sha256(), 0
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_sha256(path)}\n".encode())
        size += path.stat().st_size
    return digest.hexdigest(), size


class ArtifactStore:
    """Artifacts on one folder, local or shared.

    Args:
        root: Folder; created when first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Artifact | None:
        """The artifact that a step produced earlier, if its files are still there."""
        record = self.root / "steps" / f"{key}.json"
        if not record.exists():
            return None
        artifact = Artifact.model_validate_json(record.read_text(encoding="utf-8"))
        return artifact if Path(artifact.path).is_dir() else None

    def build(self, key: str, make: Callable[[Path], tuple[str, ...]]) -> Artifact:
        """Returns the step's artifact, making it unless it exists; concurrent callers make it once.

        Args:
            key: The step key.
            make: Fills the empty folder that it is given and returns the artifact's traits.

        Raises:
            StorageError: The store cannot be written.
        """
        with exclusive(self.root / "locks" / f"{key}.lock"):
            found = self.find(key)
            if found is not None:
                return found
            building = self.root / "building" / f"{key[:16]}-{uuid.uuid4().hex}"
            try:
                building.mkdir(parents=True)
                traits = make(building)
                return self._publish(key, building, traits)
            except OSError as error:
                raise storage_error(self.root, error) from None
            finally:
                shutil.rmtree(building, ignore_errors=True)

    def _publish(self, key: str, building: Path, traits: tuple[str, ...]) -> Artifact:
        digest, size = folder_digest(building)
        for path in building.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        final = self.root / "artifacts" / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        if not final.exists():
            building.rename(final)
            sync_folder(final.parent)
        artifact = Artifact(digest=digest, path=str(final), bytes=size, traits=traits)
        write_atomically(self.root / "steps" / f"{key}.json", artifact.model_dump_json())
        return artifact

    def discard_unfinished(self) -> None:
        """Removes what a killed process was building; call it only while nothing is being built."""
        shutil.rmtree(self.root / "building", ignore_errors=True)
