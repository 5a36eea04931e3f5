"""Evaluation and calibration texts: read, split without overlap, cut into windows of tokens."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import Field

from genopt.errors import DataError
from genopt.plan import Record

EVALUATION_SHARE = 0.6
"""Share of the characters that evaluates; the gate needs more text than calibration does."""
SEPARATOR = "\n\n"
SHUFFLE_SEED = 0

Encode = Callable[[str], list[int]]


class Documents(Record):
    """Texts with their origin.

    Attributes:
        texts: At least one document, none of them blank.
        source: What the report names as their origin.
        digest: SHA-256 over all texts in order.
    """

    texts: tuple[str, ...] = Field(min_length=1)
    source: str
    digest: str


def load_documents(path: Path | None) -> Documents:
    """Reads documents from a file, or Python's own help texts.

    Args:
        path: `.txt` (a document per block between blank lines), `.jsonl` (objects with `text` or chat `messages`),
            `.parquet` (column `text`), or None for the help texts that come with every Python.

    Raises:
        DataError: The file is missing, unreadable, empty, malformed, or of another kind.
    """
    if path is None:
        return _python_help()
    readers = {".txt": _read_text, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"Cannot tell what {path} holds from its name; give a file that ends in {', '.join(readers)}.")
    try:
        texts = [text for text in reader(path) if text.strip()]
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; check the path given with --eval-data or --calib-data.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; give a readable file.") from None
    if not texts:
        raise DataError(f"{path} holds no text; give a file with at least one document.")
    return _documents(texts, str(path))


def split(documents: Documents, seed: int) -> tuple[Documents, Documents]:
    """Divides documents into an evaluation and a calibration part that share none.

    Duplicates are removed first, so that no text can land on both sides. A single document is cut in two at a space.

    Args:
        documents: What to divide.
        seed: Determines who goes where, and the order.

    Returns:
        Evaluation with about 60 % of the characters, and calibration.

    Raises:
        DataError: There is too little text for two parts.
    """

    def place(text: str) -> bytes:
        return hashlib.sha256(f"{seed}:{text_digest(text)}".encode()).digest()

    unique = list({text_digest(text): text for text in documents.texts}.values())
    if len(unique) == 1:
        first, second = _halves(unique[0], documents.source)
        return _documents([first], documents.source), _documents([second], documents.source)
    parts: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    # From long to short by powers of two, so that the short ones even out the shares; by seed among similar ones.
    for text in sorted(unique, key=lambda text: (-len(text).bit_length(), place(text))):
        side = 0 if sizes[0] * (1 - EVALUATION_SHARE) <= sizes[1] * EVALUATION_SHARE else 1
        parts[side].append(text)
        sizes[side] += len(text)
    evaluation, calibration = (_documents(sorted(part, key=place), documents.source) for part in parts)
    overlap(evaluation, calibration)
    return evaluation, calibration


def overlap(a: Documents, b: Documents) -> None:
    """Makes sure that no document is in both.

    Raises:
        DataError: One is.
    """
    shared = {text_digest(text) for text in a.texts} & {text_digest(text) for text in b.texts}
    if shared:
        raise DataError(
            f"Evaluation and calibration text share {len(shared)} documents ({a.source}, {b.source}), which would flatter calibrated candidates; "
            "remove them from one of the files."
        )


def text_digest(text: str) -> str:
    """SHA-256 of a document without the white space around it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def windows(documents: Documents, encode: Encode, window: int, limit_tokens: int) -> list[list[int]]:
    """Cuts the documents, joined by blank lines, into windows of token ids.

    The order is shuffled, always alike, so that every prefix of the result is a fair sample of it.

    Args:
        documents: What to cut.
        encode: Token ids of a text, without special tokens.
        window: Tokens per window.
        limit_tokens: Most tokens to return; encoding stops there.

    Returns:
        Full windows; one shorter one if there is no full one and it has two tokens or more; else nothing.
    """
    import numpy as np

    size = min(window, limit_tokens)
    ids: list[int] = []
    for index, text in enumerate(documents.texts):
        # Piece by piece, because a large file holds far more text than the limit lets through.
        ids += encode(SEPARATOR + text if index else text)
        if len(ids) >= limit_tokens:
            break
    count = min(len(ids), limit_tokens) // size
    if not count:
        return [ids] if len(ids) >= 2 else []
    order = np.random.default_rng(SHUFFLE_SEED).permutation(count).tolist()
    return [ids[place * size : (place + 1) * size] for place in order]


def _documents(texts: Sequence[str], source: str) -> Documents:
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return Documents(texts=tuple(texts), source=source, digest=digest)


def _python_help() -> Documents:
    from pydoc_data.topics import topics

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _documents([topics[name] for name in sorted(topics)], f"Python {version} help texts (pydoc_data.topics)")


def _halves(text: str, source: str) -> list[str]:
    """A document cut at the white space that best leaves the evaluation its share."""
    aim = int(len(text) * EVALUATION_SHARE)
    spaces = [place for place, letter in enumerate(text) if letter.isspace() and text[:place].strip() and text[place:].strip()]
    if not spaces:
        raise DataError(f"{source} is too short to be divided into evaluation and calibration text; give a longer text.")
    cut = min(spaces, key=lambda place: abs(place - aim))
    pieces = [text[:cut], text[cut:].lstrip()]
    if text_digest(pieces[0]) == text_digest(pieces[1]):
        raise DataError(f"{source} repeats one piece of text, which leaves nothing to calibrate with; give a longer text.")
    return pieces


def _read_text(path: Path) -> Iterable[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    block: list[str] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield "\n".join(block)
            block = []
    yield "\n".join(block)


def _read_json_lines(path: Path) -> Iterable[str]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"Line {number} of {path} is not JSON ({error.msg}); mend or remove that line.") from None
        text = _text_of(content)
        if text is None:
            raise DataError(f"Line {number} of {path} has no text; give every line a string `text` or a list of chat `messages`.")
        yield text


def _text_of(content: object) -> str | None:
    """The text of one JSON line: `text`, or the contents of `messages` one after another."""
    if not isinstance(content, dict):
        return None
    text, messages = content.get("text"), content.get("messages")
    if isinstance(text, str):
        return text
    if not isinstance(messages, list) or not messages:
        return None
    turns = [message.get("content") if isinstance(message, dict) else None for message in messages]
    spoken = [turn for turn in turns if isinstance(turn, str)]
    return "\n".join(spoken) if len(spoken) == len(turns) else None


def _read_parquet(path: Path) -> Iterable[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            if "text" not in table.schema_arrow.names or not _is_string(table.schema_arrow.field("text").type):
                columns = ", ".join(table.schema_arrow.names)
                raise DataError(f"{path} has no string column `text` (it has {columns}); rename the column that holds the text.")
            values = table.read(columns=["text"]).column("text").to_pylist()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file that can be read ({str(error).splitlines()[0].rstrip('.')}); write it anew.") from None
    return [value for value in values if value is not None]


def _is_string(kind: object) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
