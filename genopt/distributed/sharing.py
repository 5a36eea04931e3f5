"""Folders of the driver's machine on machines that share nothing with it but an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from genopt.distributed import cluster
from genopt.plan import Artifact
from genopt.store.artifacts import ArtifactStore
from genopt.tasks.base import BenchConfig


def share(store: ArtifactStore, *folders: Path) -> dict[str, Artifact]:
    """Lets the other machines have folders of this one; returns them by path.

    Where machines share the store's folder, or the cluster has one alone, nothing is copied. Those that measure nothing count too, since
    they build.

    Args:
        store: The store.
        folders: The folders.

    Raises:
        StorageError: The store cannot be written.
    """
    hosts = {node.hostname for node in cluster.nodes()}
    made = {str(folder.absolute()): store.share(folder) for folder in folders} if len(hosts) > 1 else {}
    return {path: artifact for path, artifact in made.items() if artifact.digest}


class Borrowed:
    """Shared folders as this machine has them: the very ones where they are here too, else copies from the store, kept until it is closed.

    A folder that has the same path and holds something else, such as an older model, is none of them.

    Args:
        store: The store.
        shared: Artifacts by their path on the driver's machine.

    Raises:
        StorageError: The store does not have one.
    """

    def __init__(self, store: ArtifactStore, shared: Mapping[str, Artifact]) -> None:
        self._held = contextlib.ExitStack()
        try:
            self._paths = {
                path: self._held.enter_context(store.local(artifact)).path
                for path, artifact in shared.items() if not store.has_content(Path(path), artifact)
            }  # fmt: skip
        except BaseException:
            self._held.close()
            raise

    def path(self, path: str) -> str:
        """Where a file or folder of the driver's machine is here."""
        for folder, here in self._paths.items():
            if path == folder or path.startswith(f"{folder}/"):
                return here + path[len(folder) :]
        return path

    def bench(self, config: BenchConfig) -> BenchConfig:
        """A bench's configuration with paths of this machine."""
        artifact = config.artifact.model_copy(update={"path": self.path(config.artifact.path)})
        return config.model_copy(update={"original": self.path(config.original), "data": self.path(config.data), "artifact": artifact})

    def close(self) -> None:
        """Lets the copies go."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
