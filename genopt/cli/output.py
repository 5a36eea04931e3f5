"""What verbs write: documents for programs on stdout, everything for people on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from genopt.cli.options import Progress

if TYPE_CHECKING:
    from genopt.progress import Listener


def say(text: str) -> None:
    """Writes a line for people."""
    print(text, file=sys.stderr, flush=True)


def print_json(content: Any) -> None:
    """Writes the document that programs read."""
    print(json.dumps(content, indent=2), flush=True)


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
