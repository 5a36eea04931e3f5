"""Loading from disk or from memory: what a first start on a node and a restart differ by."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def drop_pages(folder: Path) -> None:
    """Asks the kernel to forget the contents of a folder's files, so that the next reader gets them from disk.

    Only clean pages that nobody has mapped go, and what cannot be opened is left alone: it is a request, for measuring.
    """
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
