"""Calibration data as the prepare stage of a task leaves it: Parquet with one row per text, as token ids, or per prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from genopt.errors import DataError

PREFIX = b"prefix"
"""Where the file's metadata says what its sequences begin with."""


def write_sequences(path: Path, sequences: Sequence[Sequence[int]], prefix: Sequence[int]) -> None:
    """Writes calibration sequences.

    Args:
        path: Parquet file to write.
        sequences: Token ids, each behind the prefix.
        prefix: What the tokenizer puts before every text, see `genopt.models.text_prefix`.
    """
    table = pa.table({"ids": pa.array([list(sequence) for sequence in sequences], pa.list_(pa.int32()))})
    pq.write_table(table.replace_schema_metadata({PREFIX: json.dumps(list(prefix))}) if prefix else table, path)


def calibration_prefix(path: str | None) -> tuple[int, ...]:
    """What every sequence of a file begins with; nothing for most tokenizers."""
    metadata = (pq.read_schema(path).metadata if path is not None else None) or {}
    return tuple(json.loads(metadata.get(PREFIX, b"[]")))


def parts(ids: Sequence[int], prefix: Sequence[int], length: int) -> list[list[int]]:
    """A sequence in parts of `length` tokens, each behind the prefix that it begins with; the last may be shorter.

    Args:
        ids: The sequence.
        prefix: What it begins with.
        length: Tokens of each part, those of the prefix among them.
    """
    text, step = ids[len(prefix) :], length - len(prefix)
    return [[*prefix, *text[start : start + step]] for start in range(0, len(text), step)]


def calibration_sequences(path: str | None, tokens: int) -> list[list[int]]:
    """The first sequences that hold `tokens` tokens together; the last one is cut, and never shorter than two.

    Args:
        path: Parquet file with a column `ids`; None where there is no calibration text.
        tokens: How many tokens are wanted.

    Raises:
        DataError: There is none.
    """
    if path is None:
        raise DataError("This technique needs calibration text; give one with --calib-data.")
    found: list[list[int]] = []
    left = tokens
    for ids in pq.read_table(path, columns=["ids"])["ids"].to_pylist():
        if left < 2:
            break
        found.append(ids[:left])
        left -= len(found[-1])
    return found


def calibration_pieces(path: str | None, count: int, length: int) -> list[list[int]]:
    """Equally long pieces, each behind the tokenizer's prefix; what is left at the end of a sequence is left out.

    Args:
        path: As for `calibration_sequences`.
        count: Most pieces.
        length: Tokens of each.

    Raises:
        DataError: There is no text, or no sequence of that length.
    """
    sequences = calibration_sequences(path, 2 * count * length)
    prefix = calibration_prefix(path)
    pieces = [piece for ids in sequences for piece in parts(ids, prefix, length) if len(piece) == length]
    if not pieces:
        raise DataError(f"The calibration text has no sequence of {length} tokens; give a longer one with --calib-data, or a smaller max_seq_length.")
    return pieces[:count]


def calibration_prompts(path: str | None, count: int) -> list[str]:
    """The first prompts of an image task.

    Args:
        path: Parquet file with a column `prompt`; None where there are no prompts.
        count: Most of them.

    Raises:
        DataError: There is none.
    """
    prompts: list[str] = [] if path is None else pq.read_table(path, columns=["prompt"])["prompt"].to_pylist()[:count]
    if not prompts:
        raise DataError("This technique needs calibration prompts; give some with --calib-data.")
    return prompts
