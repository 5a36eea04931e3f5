"""Where tests put their files: on a disk, or in memory as on machines whose temporary folder is there."""

from __future__ import annotations

from pathlib import Path

import psutil

IN_MEMORY = ("tmpfs", "ramfs")


def is_on_disk(folder: Path) -> bool:
    """Whether what is written to a folder can be dropped from memory."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(mount.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return nearest is None or nearest.fstype not in IN_MEMORY
