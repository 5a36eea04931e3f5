"""Calibration data as the prepare stage of a task leaves it: Parquet with one row per text, as token ids, or per prompt."""

from __future__ import annotations

import pyarrow.parquet as pq

from genopt.errors import DataError


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
    """Equally long pieces; what is left at the end of a sequence is left out.

    Args:
        path: As for `calibration_sequences`.
        count: Most pieces.
        length: Tokens of each.

    Raises:
        DataError: There is no text, or no sequence of that length.
    """
    sequences = calibration_sequences(path, 2 * count * length)
    pieces = [ids[start : start + length] for ids in sequences for start in range(0, len(ids) - length + 1, length)]
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
