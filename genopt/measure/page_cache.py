"""Loading from disk or from memory: what a first start on a node and a restart differ by."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from genopt.store.folders import visible_files

ON_DISK, IN_MEMORY = 0.05, 0.95
"""Shares of the bytes of files in memory below which loading reads the disk, and above which it does not."""
WINDOW = 2**30
"""Bytes of a file that are looked at together: Linux refuses a mapping that can be written and is larger than memory."""


def drop_pages(folder: Path) -> None:
    """Asks the kernel to forget the contents of a folder's files, so that the next reader gets them from disk.

    Only clean pages that nobody has mapped go, and what cannot be opened is left alone: it is a request, for measuring.
    `where_files_are` tells what came of it.
    """
    for path in visible_files(folder):
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def where_files_are(folder: Path) -> str:
    """Where the next reader gets a folder's files from: `on disk`, `in memory`, `partly in memory`, or `unknown`."""
    share = _share_in_memory(folder)
    if share is None:
        return "unknown"
    if share < ON_DISK:
        return "on disk"
    return "in memory" if share > IN_MEMORY else "partly in memory"


def _share_in_memory(folder: Path) -> float | None:
    """Of the bytes of a folder's files; None where there are none, or the kernel does not tell."""
    present = total = 0
    for path in visible_files(folder):
        try:
            with _opened(path) as descriptor:
                found, size = _pages_in_memory(descriptor), _pages(os.fstat(descriptor).st_size)
        except OSError:
            return None
        if found is None:
            return None
        present, total = present + found, total + size
    return present / total if total else None


def _pages_in_memory(descriptor: int) -> int | None:
    """Pages of an open file that are in memory; None where the kernel does not tell.

    Linux tells only who owns a file or may write it, and others that all pages are there (mincore(2), since 5.2).
    """
    status = os.fstat(descriptor)
    if not status.st_size:
        return 0
    if status.st_uid != os.geteuid() and not os.access(f"/proc/self/fd/{descriptor}", os.W_OK):
        return None
    windows = range(0, status.st_size, WINDOW)
    found = [_in_window(descriptor, start, min(WINDOW, status.st_size - start)) for start in windows]
    return None if None in found else sum(count for count in found if count is not None)


def _in_window(descriptor: int, start: int, size: int) -> int | None:
    flags = (ctypes.c_ubyte * _pages(size))()
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY, offset=start) as mapped:  # Python tells no address of one for readers alone
        first = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(size), flags)
        del first  # else the mapping could not be closed
    return None if failed else bytes(flags).count(1)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
