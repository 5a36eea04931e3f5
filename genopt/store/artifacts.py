"""Content-addressed artifacts: a step key finds work, a digest names bytes.

Layout below the root: `artifacts/<digest>/` (the files), `steps/<step key>.json` (which digest a
step produced, and its manifest), `verified/<digest>.json` (size and time of each file when its bytes
were last hashed), `elsewhere/` (the same of folders of this machine outside of the store), `locks/`,
`building/` (temporary), `checkpoints/<step key>/` (from which an unfinished step goes on).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from genopt.errors import GenoptError, SpecError, StageTimeoutError, StorageError
from genopt.plan import Artifact
from genopt.store.files import file_sha256, storage_error, sync_folder, write_atomically
from genopt.store.folders import visible_files
from genopt.store.lease import Lease

POLL_S = 0.2
"""How often one who waits looks whether another has built a step."""
HASHED_AT_ONCE = 4
"""Files: large checkpoints come in parts, and one processor hashes 1 to 2 GB a second."""


def default_root() -> Path:
    """`$GENOPT_STORE`, else `genopt` under the user's cache folder.

    Raises:
        SpecError: The variable names a bucket.
    """
    configured = os.environ.get("GENOPT_STORE")
    if configured and "://" in configured:
        raise SpecError(f"GENOPT_STORE is this machine's folder and cannot be {configured}; name a bucket with --store {configured}.")
    if configured:
        return Path(configured).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "genopt").absolute()


def step_key(parent: str, technique: str, version: int, params: Mapping[str, object], context: Mapping[str, object]) -> str:
    """Digest over everything that can change a step's bytes: parent, technique, parameters, libraries, calibration, seed."""
    content = {"parent": parent, "technique": technique, "version": version, "params": dict(params), "context": dict(context)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def folder_digest(folder: Path) -> tuple[str, int]:
    """Digest over the sorted list of (relative name, sha256) of a folder's visible files, and their total size in bytes."""
    files = visible_files(folder)
    digest = hashlib.sha256()
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for path, found in zip(files, pool.map(file_sha256, files), strict=True):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{found}\n".encode())
    return digest.hexdigest(), sum(path.stat().st_size for path in files)


def is_named(artifact: Artifact) -> bool:
    """Whether it is an artifact of a store, on whichever machine, and no model of the user's."""
    path = Path(artifact.path)
    return path.name == artifact.digest and path.parent.name == "artifacts"


def is_whole(artifact: Artifact) -> bool:
    """Whether an artifact's folder still holds its bytes, as far as sizes tell.

    Those of a store's artifact count all visible files, and those of a model its weights alone, which are safetensors. A link counts as
    what it leads to, as in the hub's cache, and as nothing where that is gone.
    """
    folder = Path(artifact.path)
    if not folder.is_dir():
        return False
    counted = (path for path in visible_files(folder) if is_named(artifact) or path.suffix == ".safetensors")
    return sum(path.stat().st_size for path in counted) >= artifact.bytes


class ArtifactStore:
    """Artifacts on one folder, local or shared.

    Args:
        root: Folder; created when first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, key: str) -> Artifact | None:
        """The artifact that a step produced earlier, if its files are still there and its bytes are those of its digest.

        Bytes are hashed again only where a file's size or time has changed since they were hashed last.
        """
        try:
            record = Artifact.model_validate_json((self.root / "steps" / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        artifact = record.model_copy(update={"path": str(self._folder(record.digest))})
        return artifact if self._is_intact(artifact) else None

    def build(self, key: str, make: Callable[[Path], tuple[str, ...]], *, wait_s: float | None = None) -> Artifact:
        """Returns the step's artifact, making it unless it exists; concurrent callers, on any machine, make it once.

        One who builds and dies is succeeded by one who waits. One who was taken for dead drops its own work and waits for its successor.

        Args:
            key: The step key.
            make: Fills the empty folder that it is given and returns the artifact's traits.
            wait_s: Longest wait for another who builds it; None waits as long as that one lives.

        Raises:
            StageTimeoutError: Another builds it for longer than that.
            StorageError: The store cannot be written.
        """
        until = None if wait_s is None else time.monotonic() + wait_s
        found = self.find(key)
        try:
            while found is None:
                with self._alone(key, until) as lease:
                    found = self.find(key) or self._make(key, make, lease)
        except OSError as error:
            raise storage_error(self.root, error) from None
        return found

    def checkpoints(self, key: str) -> Path:
        """A folder of this machine in which a step keeps what it goes on from after it was killed; removed when the step is done."""
        return self.root / "checkpoints" / key

    @contextlib.contextmanager
    def local(self, artifact: Artifact) -> Iterator[Artifact]:
        """The artifact with a path that is good on this machine while the block runs."""
        yield artifact

    def share(self, folder: Path) -> Artifact:
        """Lets other machines have a folder of this one; they share all folders where they share the store."""
        return Artifact(digest="", path=str(folder), bytes=0)

    @contextlib.contextmanager
    def _alone(self, key: str, until: float | None) -> Iterator[Lease]:
        lease = Lease(self.root / "locks" / key)
        while (other := lease.take()) is not None:
            if until is not None and time.monotonic() > until:
                raise StageTimeoutError(f"Another stage still builds the same step ({other}); give a larger --budget.")
            time.sleep(POLL_S)
        try:
            yield lease
        finally:
            lease.release()

    def _make(self, key: str, make: Callable[[Path], tuple[str, ...]], lease: Lease) -> Artifact | None:
        """None where another took over meanwhile: it has swept up this builder's folder, so that any error may come from that."""
        self._sweep(key)
        building = self.root / "building" / f"{key[:16]}-{uuid.uuid4().hex}"
        try:
            building.mkdir(parents=True)
            artifact = self._sealed(building, make(building))
            if lease.lost:
                return None
            self._publish(key, building, artifact)
            shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        except (GenoptError, OSError):
            if not lease.lost:
                raise
            return None
        finally:
            shutil.rmtree(building, ignore_errors=True)  # and no other: a successor may be at work
        return artifact

    def _sweep(self, key: str) -> None:
        """Removes what one that died left of a step; only for who has just taken the lease, before it builds."""
        for unfinished in (self.root / "building").glob(f"{key[:16]}-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def _folder(self, digest: str) -> Path:
        return self.root / "artifacts" / digest

    def _is_intact(self, artifact: Artifact) -> bool:
        return self._holds(Path(artifact.path), artifact.digest, self.root / "verified" / f"{artifact.digest}.json")

    def has_content(self, folder: Path, artifact: Artifact) -> bool:
        """Whether a folder of this machine, outside of the store, holds an artifact's bytes.

        As in `find`, bytes are hashed again only where a file's size or time has changed since they were hashed last.
        """
        return self._holds(folder, artifact.digest, self._elsewhere(folder, artifact.digest))

    def _elsewhere(self, folder: Path, digest: str) -> Path:
        """What is known of the files of a folder outside of the store that held a digest's bytes."""
        return self.root / "elsewhere" / f"{digest}-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]}.json"

    @staticmethod
    def _holds(folder: Path, digest: str, marker: Path) -> bool:
        """Whether a folder's bytes are those of a digest; the marker keeps what is known of its files."""
        try:
            seen = stamps(folder)
            if marker.exists() and marker.read_text(encoding="utf-8") == seen:
                return True
            intact = folder.is_dir() and folder_digest(folder)[0] == digest
        except OSError:
            return False
        if intact:
            with contextlib.suppress(StorageError):  # a store that can only be read is hashed each time
                write_atomically(marker, seen)
        return intact

    def _sealed(self, building: Path, traits: tuple[str, ...]) -> Artifact:
        """What was built, by its digest, once its bytes are on the disk."""
        digest, size = folder_digest(building)
        for path in visible_files(building):
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        return Artifact(digest=digest, path=str(self._folder(digest)), bytes=size, traits=traits)

    def _publish(self, key: str, building: Path, artifact: Artifact) -> None:
        final = Path(artifact.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        damaged = self.root / "building" / f"{key[:16]}-{uuid.uuid4().hex}"
        if final.exists() and not self._is_intact(artifact):
            final.rename(damaged)
        if not final.exists():
            building.rename(final)
            sync_folder(final.parent)
        shutil.rmtree(damaged, ignore_errors=True)
        write_atomically(self.root / "verified" / f"{artifact.digest}.json", stamps(final))
        write_atomically(self.root / "steps" / f"{key}.json", artifact.model_dump_json())

    def discard_unfinished(self) -> None:
        """Removes what a killed process was building; call it only while nothing is being built."""
        shutil.rmtree(self.root / "building", ignore_errors=True)


def stamps(folder: Path) -> str:
    """Size and time of change of each visible file, as JSON."""
    return json.dumps({path.relative_to(folder).as_posix(): [path.stat().st_size, path.stat().st_mtime_ns] for path in visible_files(folder)})
