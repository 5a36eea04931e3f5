"""Evaluation and calibration texts: read, split without overlap, cut into windows of tokens."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from genopt.errors import DataError
from genopt.plan import Record
from genopt.quality.gate import LEAST_ACCEPTED
from genopt.quality.overlap import apart, distinct, shared_documents
from genopt.quality.text_files import read_documents

EVALUATION_SHARE = 0.6
"""Share of the characters that evaluates; the gate needs more text than calibration does."""
SEPARATOR = "\n\n"
SHUFFLE_SEED = 0
WINDOW_SIZES = (256, 128)
"""Tokens per evaluated sequence of a text that is short for longer ones."""
ENOUGH_WINDOWS = 32
"""Sequences from which on they need not be shorter."""

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
        path: See `genopt.quality.text_files.read_documents`; None takes the help texts that come with every Python.

    Raises:
        DataError: The file is missing, unreadable, empty, malformed, or of another kind.
    """
    if path is None:
        return _python_help()
    texts, source = read_documents(path)
    return _documents(texts, source)


def split(documents: Documents, seed: int) -> tuple[Documents, Documents]:
    """Divides documents into an evaluation and a calibration part that share none.

    Documents of which a good part stands in longer ones are left out first, so that no passage can land on both sides, nor
    count twice in the evaluation. A single document is cut in two at a space.

    Args:
        documents: What to divide.
        seed: Determines who goes where, and the order.

    Returns:
        Evaluation with about 60 % of the characters, and calibration.

    Raises:
        DataError: There is too little text for two parts.
    """
    whole = unsplit(documents, seed)
    unique, source = whole.texts, whole.source
    if len(unique) == 1:
        first, second = _halves(unique[0], source)
        return _documents([first], source), _documents([second], source)
    parts: tuple[list[str], list[str]] = ([], [])
    sizes = [0, 0]
    # From long to short by powers of two, so that the short ones even out the shares; by seed among similar ones.
    for text in sorted(unique, key=lambda text: -len(text).bit_length()):
        side = 0 if sizes[0] * (1 - EVALUATION_SHARE) <= sizes[1] * EVALUATION_SHARE else 1
        parts[side].append(text)
        sizes[side] += len(text)
    evaluation, calibration = (sorted(part, key=lambda text: _place(text, seed)) for part in parts)
    remaining = apart(calibration, evaluation)
    if not remaining:
        raise DataError(f"{documents.source} repeats itself, which leaves nothing to calibrate with; give a longer text.")
    return _documents(evaluation, source), _documents(remaining, source)


def unsplit(documents: Documents, seed: int) -> Documents:
    """All documents for one part, without those of which a good part stands in longer ones, so that no passage counts twice.

    Args:
        documents: What to take.
        seed: Determines the order.
    """
    unique = distinct(documents.texts)
    left_out = len(documents.texts) - len(unique)
    source = documents.source + (f", without {left_out} near-duplicates" if left_out else "")
    return _documents(sorted(unique, key=lambda text: _place(text, seed)), source)


def _place(text: str, seed: int) -> bytes:
    """Where a document comes among others."""
    return hashlib.sha256(f"{seed}:{text_digest(text)}".encode()).digest()


def overlap(a: Documents, b: Documents) -> None:
    """Makes sure that no document of either set stands, in good part, in the other.

    Raises:
        DataError: One does.
    """
    sides = shared_documents(a.texts, b.texts)
    shared = max(sides, key=len)
    if shared:
        example = " ".join(shared[0].split())[:60]
        raise DataError(
            f"Evaluation and calibration text share {len(shared)} documents ({a.source}, {b.source}; one begins with {example!r}), "
            "which would flatter calibrated candidates; remove them from one of the files."
        )


def text_digest(text: str) -> str:
    """SHA-256 of a document without the white space around it."""
    return hashlib.sha256(text.strip().encode()).hexdigest()


def windows(documents: Documents, encode: Encode, window: int, limit_tokens: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """Cuts the documents, joined by blank lines, into windows of token ids, each behind the tokenizer's prefix.

    The order is shuffled, always alike, so that every prefix of the result is a fair sample of it.

    Args:
        documents: What to cut.
        encode: Token ids of a text, without special tokens.
        window: Tokens per window, those of the prefix among them.
        limit_tokens: Most tokens to return; encoding stops there.
        prefix: See `genopt.models.text_prefix`; at least one token of each window is text.

    Returns:
        Full windows; one shorter one if there is no full one and it has two tokens or more; else nothing.
    """
    import numpy as np

    size = min(window, limit_tokens)
    prefix = prefix[: size - 1]
    length = size - len(prefix)
    wanted = limit_tokens // size * length
    ids: list[int] = []
    for index, text in enumerate(documents.texts):
        # Piece by piece, because a large file holds far more text than the limit lets through.
        ids += encode(SEPARATOR + text if index else text)
        if len(ids) >= wanted:
            break
    count = min(len(ids), wanted) // length
    if not count:
        return [[*prefix, *ids]] if ids and len(prefix) + len(ids) >= 2 else []
    order = np.random.default_rng(SHUFFLE_SEED).permutation(count).tolist()
    return [[*prefix, *ids[place * length : (place + 1) * length]] for place in order]


def evaluation_windows(documents: Documents, encode: Encode, longest: int, limit_tokens: int, prefix: Sequence[int] = ()) -> list[list[int]]:
    """As `windows`, with shorter ones for a short text: a verdict needs several independent sequences.

    Args:
        documents: What to cut.
        encode: Token ids of a text, without special tokens.
        longest: Tokens per window of a long text.
        limit_tokens: Most tokens to return.
        prefix: As for `windows`.

    Raises:
        DataError: Even the shortest windows are too few.
    """
    found: list[list[int]] = []
    for size in sorted({longest, *(size for size in WINDOW_SIZES if size < longest)}, reverse=True):
        found = windows(documents, encode, size, limit_tokens, prefix)
        if len(found) >= ENOUGH_WINDOWS:
            return found
    if len(found) < LEAST_ACCEPTED:
        raise DataError(
            f"The evaluation text ({documents.source}) is too short: {sum(map(len, found))} tokens, where a verdict needs at least "
            f"{LEAST_ACCEPTED * min(longest, WINDOW_SIZES[-1])}; give a longer text with --eval-data."
        )
    return found


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
