"""Rows of logits become log-probabilities of a few tokens, so that no whole vocabulary ever leaves an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from genopt.errors import StageError

ROWS = 8
"""Rows of logits that are normalized at once, so that they stay in the cache of a core."""
BLOCKS = 16
"""A row is folded this many times before its largest entries are looked for."""

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
Wanted = int | Ids
"""How many of the most probable tokens, or which tokens at each position (one row of ids per position)."""


@dataclass(frozen=True)
class Distributions:
    """What a model expects after each token of a sequence but the last; row i is about token i + 1.

    Attributes:
        log_probs: Natural log-probability of the token that follows, (n,).
        top_ids: The most probable token, (n,).
        ids: Some tokens, (n, k).
        id_log_probs: Their log-probabilities, (n, k).
    """

    log_probs: Floats
    top_ids: Ids
    ids: Ids
    id_log_probs: Floats

    def to_lists(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_lists(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_lists`."""
        types = {"log_probs": np.float32, "top_ids": np.int32, "ids": np.int32, "id_log_probs": np.float32}
        found: dict[str, NDArray[Any]] = {name: np.array(values[name], kind) for name, kind in types.items()}
        return cls(**found)

    @classmethod
    def joined(cls, parts: Iterable[Distributions]) -> Self:
        """Consecutive pieces of one sequence as a whole."""
        pieces = list(parts)

        def join(name: str) -> NDArray[Any]:
            return np.concatenate([vars(piece)[name] for piece in pieces])

        return cls(join("log_probs"), join("top_ids"), join("ids"), join("id_log_probs"))


def distributions(logits: Floats, targets: NDArray[np.int64], wanted: Wanted) -> Distributions:
    """Normalizes rows of logits and keeps the wanted entries.

    Args:
        logits: One row per position.
        targets: The token that follows at each position.
        wanted: How many of the most probable tokens to keep, in falling order, or which ones.
    """
    count, vocabulary = logits.shape
    width = min(wanted, vocabulary) if isinstance(wanted, int) else wanted.shape[1]
    log_probs, top_ids = np.empty(count, np.float32), np.empty(count, np.int32)
    ids, id_log_probs = np.empty((count, width), np.int32), np.empty((count, width), np.float32)
    scratch = np.empty((min(ROWS, count), vocabulary), np.float32)
    for start in range(0, count, ROWS):
        block, part = logits[start : start + ROWS], slice(start, start + ROWS)
        every = np.arange(len(block))
        top_ids[part] = block.argmax(axis=1)
        highest = block[every, top_ids[part]]
        shifted = np.subtract(block, highest[:, None], out=scratch[: len(block)])
        total = highest + np.log(np.exp(shifted, out=shifted).sum(axis=1))
        log_probs[part] = block[every, targets[part]] - total
        if width:
            ids[part] = largest(block, width) if isinstance(wanted, int) else wanted[part]
            id_log_probs[part] = np.take_along_axis(block, ids[part], axis=1) - total[:, None]
    return Distributions(log_probs, top_ids, ids, id_log_probs)


def largest(rows: Floats, count: int) -> Ids:
    """Places of the largest entries of each row, in falling order.

    Folding a row BLOCKS times leaves the largest of every BLOCKS entries. The `count` largest folds hold the `count`
    largest entries between them, so that only those few need sorting.

    Args:
        rows: Finite numbers.
        count: At most the length of a row.
    """
    length = rows.shape[1]
    folds = -(-length // BLOCKS)
    if folds <= count:
        return np.argsort(-rows, axis=1, kind="stable")[:, :count].astype(np.int32)
    padded = np.pad(rows, ((0, 0), (0, folds * BLOCKS - length)), constant_values=-np.inf) if length % BLOCKS else rows
    folded = padded.reshape(len(rows), BLOCKS, folds).max(axis=1)
    chosen = np.argpartition(folded, folds - count, axis=1)[:, folds - count :]
    places = (chosen[:, None, :] + folds * np.arange(BLOCKS)[None, :, None]).reshape(len(rows), -1)
    values = np.take_along_axis(padded, places, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(places, order, axis=1).astype(np.int32)


def require_rows(ids: Ids, sequence_length: int) -> None:
    """Refuses wanted ids that do not belong to a sequence.

    Raises:
        StageError: There is not one row of ids for each token but the last.
    """
    if ids.ndim != 2 or len(ids) != sequence_length - 1:
        raise StageError(f"Ids of shape {ids.shape} do not fit a sequence of {sequence_length} tokens; give one row per token but the last.")
