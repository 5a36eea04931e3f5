"""What is dropped from memory is read from disk next, and what somebody has mapped stays."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from genopt.measure import page_cache
from genopt.measure.page_cache import drop_pages, where_files_are
from genopt.testing.disk import is_on_disk

SIZE = 64 * mmap.PAGESIZE + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file that is on its disk too, as an artifact's are."""
    (tmp_path / "model" / "part").mkdir(parents=True)
    path = tmp_path / "model" / "part" / "weights"
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return tmp_path / "model"


@pytest.fixture
def keep() -> Iterator[Callable[[Path, int], None]]:
    """Maps a file, and touches its first pages."""
    with ExitStack() as stack:

        def mapped(path: Path, pages: int) -> None:
            stream = stack.enter_context(path.open("rb"))
            content = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            content.madvise(mmap.MADV_RANDOM)  # else the kernel maps their neighbours too
            assert len(content[: pages * mmap.PAGESIZE : mmap.PAGESIZE]) == pages

        yield mapped


def test_dropping_pages_changes_no_file(folder: Path) -> None:
    before = (folder / "part" / "weights").read_bytes()
    drop_pages(folder)
    drop_pages(folder / "missing")
    assert (folder / "part" / "weights").read_bytes() == before


@pytest.mark.parametrize("window", [page_cache.WINDOW, 16 * mmap.PAGESIZE])
def test_what_is_mapped_stays_in_memory_and_what_is_not_goes(
    folder: Path, keep: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    if not is_on_disk(folder):
        pytest.skip("temporary files are in memory here")
    monkeypatch.setattr(page_cache, "WINDOW", window)
    path = folder / "part" / "weights"
    path.read_bytes()
    assert where_files_are(folder) == "in memory"
    drop_pages(folder)
    assert where_files_are(folder) == "on disk"
    path.read_bytes()
    keep(path, 30)
    drop_pages(folder)
    assert where_files_are(folder) == "partly in memory"
    keep(path, 65)
    drop_pages(folder)
    assert where_files_are(folder) == "in memory"


def test_where_there_is_nothing_to_load_nothing_is_said(folder: Path) -> None:
    assert where_files_are(folder / "missing") == "unknown"
    (folder / "part" / "weights").write_bytes(b"")
    assert where_files_are(folder) == "unknown"


def test_of_files_of_others_the_kernel_tells_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert where_files_are(folder) == "unknown"
