"""A user's own prompts, from a text, JSON-lines or Parquet file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from genopt.errors import DataError
from genopt.plan import Record

LONGEST_LINE = 1_000_000
"""Characters; no context of today holds more."""
_KINDS = (".txt", ".jsonl", ".parquet")
_FORM = "give every one a text under `prompt`, or under `messages` a list of objects with texts under `role` and `content`"


class Message(Record):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""A plain text, or a conversation whose next turn is asked for."""


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """All prompts of a file; see `iterate_prompts`."""
    return tuple(iterate_prompts(path))


def iterate_prompts(path: Path, longest_line: int = LONGEST_LINE) -> Iterator[Prompt]:
    """Reads prompts one by one, in the order of the file; empty lines are skipped.

    Args:
        path: `.txt` with one prompt a line; `.jsonl` whose objects have `prompt` or chat `messages`; or `.parquet` with a
            column of one of these names. Other keys and columns are ignored.
        longest_line: Characters; keeps a file without line ends from being read whole.

    Raises:
        DataError: The file is missing, unreadable, has no prompt, another form, or another kind.
    """
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise DataError(f"Cannot tell what {path} holds from its name; give prompts in a file that ends in {', '.join(_KINDS)}.")
    some = False
    try:
        for prompt in _texts(path, longest_line) if kind == ".txt" else _entries(path, kind, longest_line):
            some = True
            yield prompt
    except FileNotFoundError:
        raise DataError(f"Cannot read the prompts {path} (there is no such file); check the path given with --prompts.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"Cannot read the prompts {path} ({error.strerror or error}); give a readable file.") from None
    if not some:
        raise DataError(f"{path} has no prompts; give it at least one.")


def _texts(path: Path, longest: int) -> Iterator[Prompt]:
    return (line.strip() for _, line in _lines(path, longest))


def _entries(path: Path, kind: str, longest: int) -> Iterator[Prompt]:
    entries = _json_lines(path, longest) if kind == ".jsonl" else _rows(path)
    return (_prompt(path, place, entry) for place, entry in entries)


def _lines(path: Path, longest: int) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    number = 0
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        while line := stream.readline(longest + 1):
            number += 1
            if len(line) > longest:
                raise DataError(f"Line {number} of {path} is longer than {longest} characters; give one prompt a line.")
            if line.strip():
                yield number, line


def _json_lines(path: Path, longest: int) -> Iterator[tuple[str, object]]:
    for number, line in _lines(path, longest):
        try:
            yield f"Line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"Line {number} of {path} is not JSON; mend or remove it.") from None


def _rows(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            columns = [name for name in ("prompt", "messages") if name in table.schema_arrow.names]
            if not columns:
                raise DataError(f"{path} has no column `prompt` or `messages` (it has {', '.join(table.schema_arrow.names)}); rename the right one.")
            rows = table.read(columns=columns).to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0].rstrip('.')}); write it anew.") from None
    for number, row in enumerate(rows, start=1):
        yield f"Row {number}", row


def _prompt(path: Path, place: str, entry: object) -> Prompt:
    """The prompt of one entry; where it has both, the plain text counts."""
    if isinstance(entry, dict):
        text, messages = entry.get("prompt"), entry.get("messages")
        if isinstance(text, str) and text.strip():
            return _encodable(path, place, text)
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return tuple(Message(role=message["role"], content=_encodable(path, place, message["content"])) for message in messages)
    raise DataError(f"{place} of {path} has no prompt; {_FORM}.")


def _encodable(path: Path, place: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place} of {path} has half a character (a lone surrogate); mend it.") from None
    return text


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))
