"""A store that machines share through an object store, with a cache on each of them that is checked and bounded.

Layout of the shared part: `artifacts/<digest>/` (the files), `manifests/<digest>.json` (their names and sizes, written when all
are there) and `steps/<step key>.json`, as in `genopt.store.artifacts`. What comes from it is believed when its digest is right.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from genopt.errors import SpecError, StorageError
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore, default_root, folder_digest, is_named, stamps
from genopt.store.claim import Claim
from genopt.store.files import exclusive, storage_error, sync_folder, write_atomically
from genopt.store.folders import visible_files
from genopt.store.lease import Lease
from genopt.store.remote import Remote

LIMIT = "GENOPT_CACHE_BYTES"
"""Environment variable: most bytes that a machine's cache of a shared store keeps."""
SHARE_OF_DISK = 0.5
"""The same without that variable, as a share of what the disk can hold free."""


def is_shared(location: str | None) -> bool:
    """Whether a location is an object store, in front of which machines keep a cache."""
    return location is not None and location.startswith(("s3://", "gs://"))


def open_root(location: str | None) -> Path:
    """This machine's folder for a store, created and proven writable: the store itself, or what stands in front of an object store.

    Raises:
        StorageError: The folder cannot be written, or the object store cannot be reached and written.
    """
    if is_shared(location) and location is not None:
        Remote(location).write(".writable", b"")
    elif location is not None and "://" in location and not location.startswith("file://"):
        raise StorageError(f"The store {location} is neither a folder nor an s3://, gs:// or file:// URI; give one of these.")
    root = _root(location)
    write_atomically(root / ".writable", b"")
    return root


def _root(location: str | None) -> Path:
    """The folder as such, whether it can be used or not."""
    return default_root() if not location or is_shared(location) else Path(location.removeprefix("file://")).expanduser().absolute()


def compiled_folder(location: str | None) -> Path:
    """Where TorchInductor keeps what it compiled, in this machine's folder for a store: who opens a candidate again need not wait for it."""
    return _root(location) / "inductor"


def open_store(location: str | None) -> ArtifactStore:
    """The store at a folder, a `file://` URI or an object store's URI; this user's own where there is no location.

    Raises:
        StorageError: It cannot be used.
    """
    if location is None or not is_shared(location):
        return ArtifactStore(_root(location))
    return SharedStore(Remote(location), default_root() / "cache", limit_bytes())


def limit_bytes() -> int | None:
    """The limit that `$GENOPT_CACHE_BYTES` sets, or None.

    Raises:
        SpecError: It is not a number of bytes.
    """
    asked = os.environ.get(LIMIT)
    if asked is None:
        return None
    if not asked.isdigit():
        raise SpecError(f"{LIMIT} is {asked!r} and must be a number of bytes, such as 20000000000.")
    return int(asked)


class SharedStore(ArtifactStore):
    """Artifacts in an object store, through a cache on this machine.

    Args:
        remote: The object store.
        root: The cache's folder.
        limit: Most bytes that the cache keeps when something is added; None allows half of the disk's free space and itself.
    """

    def __init__(self, remote: Remote, root: Path, limit: int | None = None) -> None:
        super().__init__(root)
        self._remote, self._limit = remote, limit

    def find(self, key: str) -> Artifact | None:
        """See `ArtifactStore.find`; brings the artifact to this machine where it is elsewhere.

        What only this machine still has is uploaded again, since another one may be told to use it.

        Raises:
            StorageError: The object store does not answer or cannot be written, or this machine's disk cannot.
        """
        found = super().find(key)
        if found is not None:
            with self._pinned(found.digest):
                if self._is_intact(found):  # else another process has dropped it meanwhile
                    if self._manifest(found.digest) is None:
                        self._offer(key, found)
                    return found
        content = self._remote.read(f"steps/{key}.json")
        try:
            record = Artifact.model_validate_json(content) if content is not None else None
        except ValidationError:
            return None
        brought = self._bring(record) if record is not None else None
        if brought is not None:
            write_atomically(self.root / "steps" / f"{key}.json", brought.model_dump_json())
        return brought

    @contextlib.contextmanager
    def local(self, artifact: Artifact) -> Iterator[Artifact]:
        """See `ArtifactStore.local`; while the block runs the cache keeps it.

        Raises:
            StorageError: The object store does not have it, or not as it was.
        """
        if not is_named(artifact):
            yield artifact
            return
        with self._pinned(artifact.digest):
            mine = artifact.model_copy(update={"path": str(self._folder(artifact.digest))})
            found = mine if self._is_intact(mine) else self._bring(artifact)
            if found is None:
                raise StorageError(f"The store {self._remote.uri} has no artifact {artifact.digest[:16]}…; run `genopt store verify`, then again.")
            yield found

    def share(self, folder: Path) -> Artifact:
        """Puts a folder of this machine into the object store; other machines get it with `local`.

        Raises:
            StorageError: The object store or this machine's folder cannot be written.
        """
        seen = stamps(folder)
        digest, size = folder_digest(folder)
        write_atomically(self._elsewhere(folder, digest), seen)
        artifact = Artifact(digest=digest, path=str(self._folder(digest)), bytes=size)
        self._upload(artifact, folder)
        return artifact

    @contextlib.contextmanager
    def _alone(self, key: str, until: float | None) -> Iterator[Lease]:
        with super()._alone(key, until) as lease, Claim(self._remote, key).held(until):
            yield lease

    def _publish(self, key: str, building: Path, artifact: Artifact) -> None:
        with self._pinned(artifact.digest):
            super()._publish(key, building, artifact)
            self._offer(key, artifact)
        self._evict(artifact.digest)

    def _offer(self, key: str, artifact: Artifact) -> None:
        """Lets other machines find what is here; the step comes last, so that it never leads to nothing."""
        self._upload(artifact, Path(artifact.path))
        self._remote.write(f"steps/{key}.json", artifact.model_dump_json().encode())

    def _upload(self, artifact: Artifact, folder: Path) -> None:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in visible_files(folder)}
        prefix = f"artifacts/{artifact.digest}"
        if self._manifest(artifact.digest) == sizes == self._sizes(artifact.digest):
            return
        for name in sizes:
            self._remote.upload(folder / name, f"{prefix}/{name}")
        self._remote.write(f"manifests/{artifact.digest}.json", json.dumps(sizes, sort_keys=True).encode())

    def _sizes(self, digest: str) -> dict[str, int]:
        """What the object store has of an artifact."""
        prefix = f"artifacts/{digest}"
        return {one.name.removeprefix(f"{prefix}/"): one.bytes for one in self._remote.files(prefix)}

    def _manifest(self, digest: str) -> dict[str, int] | None:
        content = self._remote.read(f"manifests/{digest}.json")
        try:
            found = json.loads(content) if content is not None else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _bring(self, artifact: Artifact) -> Artifact | None:
        """Downloads an artifact, once however many processes of this machine lack it; None where the object store does not have its bytes.

        Whoever dies lets the others go on, since the lock goes with its process. Nobody who has the lock waits for one who pins an artifact.
        """
        if self._manifest(artifact.digest) is None:  # and before a file is named by it here: a digest that leads elsewhere is refused
            return None
        mine = artifact.model_copy(update={"path": str(self._folder(artifact.digest))})
        with self._pinned(artifact.digest), exclusive(self.root / "locks" / f"bringing-{artifact.digest}"):
            return mine if self._is_intact(mine) else self._download(mine)

    def _download(self, artifact: Artifact) -> Artifact | None:
        """What is damaged in the object store is forgotten there, so that it is built again."""
        manifest = self._manifest(artifact.digest)
        if manifest is None:
            return None
        if self._sizes(artifact.digest) != manifest:
            self._remote.remove(f"manifests/{artifact.digest}.json")
            return None
        self._evict(artifact.digest, coming=sum(manifest.values()))
        building = self.root / "building" / f"{artifact.digest[:16]}-{uuid.uuid4().hex}"
        try:
            building.mkdir(parents=True)
            for name in manifest:
                self._remote.download(f"artifacts/{artifact.digest}/{name}", building / name)
            if folder_digest(building)[0] != artifact.digest:
                self._remote.remove(f"manifests/{artifact.digest}.json")
                return None
            self._install(artifact, building)
            return artifact
        except OSError as error:
            raise storage_error(self.root, error) from None
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _install(self, artifact: Artifact, building: Path) -> None:
        """Moves what was downloaded and checked to its place."""
        final = Path(artifact.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists() and not self._is_intact(artifact):
            shutil.rmtree(final)
        try:
            building.rename(final)
            sync_folder(final.parent)
        except OSError:  # another process of this machine has built it meanwhile
            if not self._is_intact(artifact):
                raise
        write_atomically(self.root / "verified" / f"{artifact.digest}.json", stamps(final))

    def _use(self, digest: str) -> Path:
        path = self.root / "used" / digest
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from None
        return path

    @contextlib.contextmanager
    def _pinned(self, digest: str) -> Iterator[None]:
        """Counts as used now; while the block runs, the cache keeps it, also for other processes."""
        path = self._use(digest)
        try:
            path.touch()
            pin = path.open("a")
        except OSError as error:
            raise storage_error(path, error) from None
        with pin:
            fcntl.flock(pin, fcntl.LOCK_SH)
            yield

    def _evict(self, keep: str, *, coming: int = 0) -> None:
        """Makes room for what comes: what was not used for longest goes first, and nothing that is in use."""
        with contextlib.suppress(OSError):
            folders = [path for path in (self.root / "artifacts").iterdir() if path.is_dir()] if (self.root / "artifacts").exists() else []
            sizes = {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in folders}
            total = sum(sizes.values())
            limit = self._limit
            if limit is None:
                self.root.mkdir(parents=True, exist_ok=True)
                limit = int(SHARE_OF_DISK * (shutil.disk_usage(self.root).free + total))
            for digest in sorted(sizes, key=self._last_used):
                if total + coming <= limit:
                    return
                if digest != keep and self._drop(digest):
                    total -= sizes[digest]

    def _last_used(self, digest: str) -> float:
        path = self.root / "used" / digest
        return path.stat().st_mtime if path.exists() else 0.0

    def _drop(self, digest: str) -> bool:
        """Removes an artifact from this machine, unless it is in use."""
        with self._use(digest).open("a") as pin:
            try:
                fcntl.flock(pin, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            gone = self.root / "building" / f"evicted-{uuid.uuid4().hex}"
            gone.parent.mkdir(parents=True, exist_ok=True)
            self._folder(digest).rename(gone)
            (self.root / "verified" / f"{digest}.json").unlink(missing_ok=True)
            shutil.rmtree(gone, ignore_errors=True)
        return True
