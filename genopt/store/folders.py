"""What counts as a folder's files, for whoever hashes, checks, measures or copies them: all must see the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath


def is_hidden(name: PurePath) -> bool:
    """Whether a name below a folder, or a folder on the way to it, begins with a dot.

    No library loads such files, and tools change them at any time: Git its index, and the hub's client what it notes of downloads.
    """
    return any(part.startswith(".") for part in name.parts)


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and of those below it, sorted; hidden ones are left out. There are none where there is no folder.

    Links are followed as libraries that load models do: `unet` of a pipeline may lead to a folder elsewhere. One that leads to a folder in
    which it is found itself is not. Folders that may not be read count as empty, such as a disk's `lost+found`.

    Raises:
        OSError: A folder cannot be read, for another reason.
    """
    return sorted(_below(folder, ())) if folder.is_dir() else []


def _below(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    here = (*above, folder.resolve())
    try:
        found = list(folder.iterdir())
    except PermissionError:
        return
    for path in found:
        if is_hidden(PurePath(path.name)):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in here:
            yield from _below(path, here)
