"""Reads documents from text, JSON lines and Parquet, piece by piece: a file may be far larger than memory."""

from __future__ import annotations

import codecs
import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from genopt.errors import DataError

KEPT_CHARACTERS = 4_000_000
"""Most text that is kept of a file, about a million tokens; of a larger one a sample of documents is."""
DOCUMENT_CHARACTERS = 200_000
"""Longer documents are taken in pieces."""
PIECE = 1 << 20
"""Characters or bytes read at a time."""
LINE_BYTES = 1 << 26
"""Longest line of JSON."""


def read_documents(path: Path) -> tuple[list[str], str]:
    """The documents of a file, none of them blank, and what the report calls them.

    A file with more than `KEPT_CHARACTERS` gives a sample: the documents with the lowest hashes, which are the same each
    time. It is read to its end, so that what is wrong with it is found.

    Args:
        path: `.txt` (a document per block between blank lines), `.jsonl` (objects with `text`, chat `messages`, or a
            `prompt` with its answer), `.parquet` (column `text`).

    Raises:
        DataError: The file is missing, unreadable, empty, malformed, or of another kind.
    """
    readers = {".txt": read_text, ".jsonl": read_json_texts, ".parquet": read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Cannot tell what {path} holds from its name; give a file that ends in {', '.join(readers)}.")
    try:
        texts, total = _sample(reader(path))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the path given with --eval-data or --calib-data.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text (byte {_first_bad_byte(path)}); convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; give a readable file.") from None
    if not texts:
        raise DataError(f"{path} holds no text; give a file with at least one document.")
    kept = sum(map(len, texts))
    return texts, str(path) if kept == total else f"{path} (a sample of {kept:,} of {total:,} characters)"


def _sample(texts: Iterable[str]) -> tuple[list[str], int]:
    """Documents in order, at most `KEPT_CHARACTERS` of them, and the characters of all."""
    heap: list[tuple[int, int, str]] = []
    total = kept = 0
    for place, text in enumerate(texts):
        if not text.strip():
            continue
        total += len(text)
        kept += len(text)
        heapq.heappush(heap, (-int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]), place, text))
        while kept > KEPT_CHARACTERS and len(heap) > 1:
            kept -= len(heapq.heappop(heap)[2])
    return [text for _, _, text in sorted(heap, key=lambda item: item[1])], total


def read_text(path: Path) -> Iterator[str]:
    """Blocks between blank lines."""
    with path.open(encoding="utf-8-sig") as stream:
        yield from _in_pieces(_blocks(_lines(stream, path)))


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    """Lines; one that never ends comes in pieces that end in white space where they can."""
    rest = ""
    while piece := stream.read(PIECE):
        if "\0" in piece:
            raise DataError(f"{path} holds NUL bytes, so it is no text; give a UTF-8 text file.")
        *lines, rest = (rest + piece).split("\n")
        yield from lines
        while len(rest) > DOCUMENT_CHARACTERS:
            cut = _cut(rest)
            yield rest[:cut]
            rest = rest[cut:]
    yield rest


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for line in lines:
        if line.strip() and size <= DOCUMENT_CHARACTERS:
            block.append(line)
            size += len(line)
            continue
        yield "\n".join(block)
        block, size = ([line], len(line)) if line.strip() else ([], 0)
    yield "\n".join(block)


def _in_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        while len(text) > 2 * DOCUMENT_CHARACTERS:
            cut = _cut(text)
            yield text[:cut]
            text = text[cut:]
        yield text


def _cut(text: str) -> int:
    """Where a long text is divided: at white space in the second half of what a document may have, or after all of that."""
    spaces = [text.rfind(space, DOCUMENT_CHARACTERS // 2, DOCUMENT_CHARACTERS) for space in " \n\t"]
    return max(spaces) + 1 if max(spaces) > 0 else DOCUMENT_CHARACTERS


def read_json_texts(path: Path) -> Iterator[str]:
    """The text of each line."""
    return _in_pieces(_json_texts(path))


def _json_texts(path: Path) -> Iterator[str]:
    for number, content in read_json_lines(path):
        text = _text_of(content)
        if text is None:
            raise DataError(f"Line {number} of {path} has no text; give every line a string `text` or a list of chat `messages`.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"Line {number} of {path} has half a character (a lone surrogate); mend or remove that line.") from None
        yield text


def read_json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Values with their line numbers; blank lines are passed over.

    Raises:
        DataError: A line is not JSON, or too long.
    """
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LINE_BYTES):
            number += 1
            if len(line) == LINE_BYTES:
                raise DataError(f"Line {number} of {path} is longer than {LINE_BYTES >> 20} MiB; give one document a line.")
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise DataError(f"Line {number} of {path} is not JSON ({error.msg}); mend or remove that line.") from None
            except RecursionError:
                raise DataError(f"Line {number} of {path} is nested too deeply; mend or remove that line.") from None


def item_text(content: Mapping[str, object]) -> str:
    """A prompt with its answer, if that is there; `genopt.quality.task_items` says whether an item is whole."""
    choices, label, answer = content.get("choices"), content.get("label"), content.get("answer")
    if isinstance(choices, list) and isinstance(label, int) and 0 <= label < len(choices):
        answer = choices[label]
    return f"{content['prompt']} {answer}" if isinstance(answer, str) else str(content["prompt"])


def _text_of(content: object) -> str | None:
    """The text of one JSON line: `text`, the contents of `messages` one after another, or a `prompt` with its answer."""
    if not isinstance(content, dict):
        return None
    text, messages = content.get("text"), content.get("messages")
    if isinstance(text, str):
        return text
    if isinstance(content.get("prompt"), str):
        return item_text(content)
    if not isinstance(messages, list) or not messages:
        return None
    turns = [message.get("content") if isinstance(message, dict) else None for message in messages]
    spoken = [turn for turn in turns if isinstance(turn, str)]
    return "\n".join(spoken) if len(spoken) == len(turns) else None


def read_parquet(path: Path) -> Iterator[str]:
    """The column `text`, a batch of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names or not _is_string(table.schema_arrow.field("text").type):
                columns = ", ".join(table.schema_arrow.names)
                raise DataError(f"{path} has no string column `text` (it has {columns}); rename the column that holds the text.")
            for batch in table.iter_batches(batch_size=256, columns=["text"]):
                yield from _in_pieces(value for value in batch.column("text").to_pylist() if value is not None)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0].rstrip('.')}); write it anew.") from None


def _is_string(kind: object) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first_bad_byte(path: Path) -> int:
    """Offset of the first byte that is not UTF-8."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while True:
            piece = stream.read(PIECE)
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return done - held + error.start
            done += len(piece)
            if not piece:
                return done
