"""What verbs write: documents for programs on stdout, everything for people on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from genopt.cli.options import Progress

if TYPE_CHECKING:
    from genopt.progress import Listener


def say(text: str) -> None:
    """Writes a line for people."""
    print(text, file=sys.stderr, flush=True)


class _Aside(io.TextIOBase):
    """Stands in for stdout and writes to stderr.

    Args:
        document: The stdout that it stands in for.
    """

    def __init__(self, document: TextIO) -> None:
        self.document = document

    def write(self, text: str) -> int:
        """Writes to stderr as it is now."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Flushes stderr as it is now."""
        sys.stderr.flush()


@contextmanager
def document_alone() -> Iterator[None]:
    """While the block runs stdout is for `print_json` alone; what libraries print, such as Ray about a node that died, goes to stderr."""
    with redirect_stdout(_Aside(sys.stdout)):
        yield


def print_json(content: Any) -> None:
    """Writes the document that programs read."""
    out = sys.stdout
    print(json.dumps(content, indent=2), file=out.document if isinstance(out, _Aside) else out, flush=True)


def write_event(line: str) -> None:
    """Writes a line for programs that follow a run."""
    sys.stderr.write(line)
    sys.stderr.flush()


@contextmanager
def shown(progress: Progress) -> Iterator[Listener]:
    """Shows on stderr what a run does while the block runs."""
    from genopt.console.run import LiveTable
    from genopt.console.terminal import plain
    from genopt.progress import JsonLines

    if progress is Progress.json:
        yield JsonLines(write_event)
        return
    with LiveTable(plain() if progress is Progress.lines else None) as table:
        yield table
