"""What goes along with a job: small files, checked before they are sent; models stay where nodes find them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray._private.runtime_env.packaging import _dir_travel  # walks as the upload does, .rayignore and .gitignore included

from genopt.errors import SpecError
from genopt.report.wording import size
from genopt.spec import load

MOST_BYTES = 100e6
"""Ray keeps what is uploaded in the memory of the cluster's head, and refuses 512 MB only after packing them."""
_SILENT = logging.Logger("upload", logging.ERROR)
CONFIG = "--config"
"""Option of the verbs that read a spec."""
LARGEST = 3
"""How many of the largest entries a refusal names."""


@contextmanager
def working_folder(words: Sequence[str], chosen: Path | None) -> Iterator[Path | None]:
    """The folder to upload for a command: the chosen one, or a temporary one with the files that the command names; None if it names none.

    A file counts as named where its path is relative, be it in the command or in the spec that its --config names: an absolute path means
    what the nodes have there. A job leaves such paths relative too, in `local_files`.

    Args:
        words: The command.
        chosen: Folder that the user wants to take along.

    Raises:
        SpecError: It is no folder, too large, a file lies outside of the current folder, or the spec cannot be read.
    """
    if chosen is not None:
        if not chosen.is_dir():
            raise SpecError(f"There is no folder {chosen} to take along; give one that exists with --working-dir.")
        require_small(chosen)
        yield chosen
        return
    named = _named(words)
    if not named:
        yield None
        return
    _refuse_large(Counter({path.as_posix(): path.stat().st_size for path in named}))
    with tempfile.TemporaryDirectory(prefix="genopt-job-") as made:
        for path in named:
            destination = Path(made, path)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, destination)
        yield Path(made)


def require_small(folder: Path) -> None:
    """Refuses what a job should not carry.

    Raises:
        SpecError: It is too large, with what makes it so.
    """
    sizes: Counter[str] = Counter()
    root = folder.resolve()

    def add(path: Path) -> None:
        if path.is_file():
            sizes[path.relative_to(root).parts[0]] += path.stat().st_size

    _dir_travel(root, [], add, include_gitignore=True, logger=_SILENT)
    _refuse_large(sizes)


def _refuse_large(sizes: Counter[str]) -> None:
    """Refuses what has more than `MOST_BYTES`, by the sizes of its entries."""
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = ", ".join(f"{name} ({size(count)})" for name, count in sizes.most_common(LARGEST))
        raise SpecError(
            f"What goes along with the job has {size(total)}, more than {size(MOST_BYTES)}: mostly {largest}; list it in .rayignore, or put models "
            "and data where all nodes find them and name them by an absolute path or id."
        )


def _named(words: Sequence[str]) -> list[Path]:
    """Files below the current folder that a command names by a relative path, as a word, after an option's `=`, or in its spec."""
    found, option = [], ""
    for word in words:
        name, equals, text = word.partition("=") if word.startswith("--") else (option, "=", word)
        found += _files([text])
        if name == CONFIG and os.path.isfile(text):
            found += _files(_texts(load(Path(text))))
        option = "" if equals else name
    return list(dict.fromkeys(found))


def _files(texts: Iterable[str]) -> list[Path]:
    """Those that are relative paths of files."""
    found = []
    for text in texts:
        path = Path(text)
        if path.is_absolute() or not os.path.isfile(text):  # Path.is_file raises for a text that is too long for a path
            continue
        if ".." in path.parts:
            raise SpecError(f"{path} lies outside of the current folder, so it cannot go along; run this above it, or name it by an absolute path.")
        found.append(path)
    return found


def _texts(value: object) -> Iterator[str]:
    """All texts in a spec's values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
