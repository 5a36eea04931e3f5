"""The original's distributions over next tokens, written once and compared with every candidate's.

Kept per position: the log-probability of the token that follows, the most probable tokens with theirs, and what
all other tokens hold together (the tail). That is a thousandth of the whole vocabulary, and enough for a divergence
on those tokens and the tail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genopt.engines.base import Distributes
from genopt.engines.distribution import Distributions, Floats
from genopt.errors import StageError, StorageError
from genopt.plan import Record

TOP = 128
"""Tokens kept per position."""
FILE = "reference.parquet"
FLOOR = -50.0
"""Least log-probability that is told apart, in nats: a candidate that rules a token out must not make a mean infinite."""


class Compared(Record):
    """A candidate beside the original on some sequences; entry i of each is about token i + 1.

    Attributes:
        log_probs: The candidate's log-probabilities of the tokens that follow.
        reference_log_probs: The original's.
        top_ids: The candidate's most probable tokens.
        reference_top_ids: The original's.
        kl: Divergence from the original's distribution to the candidate's, in nats.
    """

    log_probs: tuple[tuple[float, ...], ...]
    reference_log_probs: tuple[tuple[float, ...], ...]
    top_ids: tuple[tuple[int, ...], ...]
    reference_top_ids: tuple[tuple[int, ...], ...]
    kl: tuple[tuple[float, ...], ...]

    def __add__(self, other: Compared) -> Compared:
        """These sequences and then those."""
        mine, theirs = vars(self), vars(other)
        return Compared(**{name: mine[name] + theirs[name] for name in Compared.model_fields})

    def after(self, count: int) -> Compared:
        """The same without the first entries of each sequence, as if it began with a later token."""
        return Compared(**{name: tuple(row[count:] for row in rows) for name, rows in vars(self).items()}) if count else self


NOTHING = Compared(log_probs=(), reference_log_probs=(), top_ids=(), reference_top_ids=(), kl=())


def record(session: Distributes, sequences: Sequence[Sequence[int]], path: Path, facts: Mapping[str, str], top: int = TOP) -> None:
    """Writes the original's distributions as Parquet: a row per position, a row group per sequence.

    One sequence is in memory at a time.

    Args:
        session: The original.
        sequences: Token ids, at least 2 each.
        path: File to write; the caller makes it durable.
        facts: What they came from, kept in the file's metadata.
        top: Tokens kept per position.

    Raises:
        StageError: The original gives numbers that are not finite.
    """
    first = session.distributions(sequences[0], top)
    schema = _schema(first.ids.shape[1], facts)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for place, sequence in enumerate(sequences):
            found = first if place == 0 else session.distributions(sequence, top)
            if not (np.isfinite(found.log_probs).all() and np.isfinite(found.id_log_probs[:, 0]).all()):
                raise StageError("The original gives log-probabilities that are not finite; check its weights, or load it in a wider dtype.")
            writer.write_table(_table(place, sequence, found, schema))


def compare(session: Distributes, sequences: Sequence[Sequence[int]], path: Path) -> Compared:
    """Scores sequences with a candidate and holds it against what `record` wrote of the same sequences.

    Args:
        session: The candidate.
        sequences: The recorded sequences, in order.
        path: The file.

    Raises:
        StorageError: The file is about other sequences.
    """
    rows: dict[str, list[Any]] = {name: [] for name in Compared.model_fields}
    for sequence, reference in zip(sequences, read(path, sequences), strict=True):
        found = session.distributions(sequence, reference.ids)
        rows["log_probs"].append(found.log_probs.tolist())
        rows["reference_log_probs"].append(reference.log_probs.tolist())
        rows["top_ids"].append(found.top_ids.tolist())
        rows["reference_top_ids"].append(reference.top_ids.tolist())
        rows["kl"].append(divergence(reference.id_log_probs, found.id_log_probs).round(7).tolist())
    return Compared.model_validate(rows)


def read(path: Path, sequences: Sequence[Sequence[int]]) -> Iterator[Distributions]:
    """The recorded distributions, one sequence at a time.

    Raises:
        StorageError: The file cannot be read, or is about other sequences.
    """
    try:
        with pq.ParquetFile(path) as file:
            if file.num_row_groups != len(sequences):
                raise StorageError(f"{path} holds {file.num_row_groups} sequences where {len(sequences)} are asked for; remove it.")
            for place, sequence in enumerate(sequences):
                table = file.read_row_group(place)
                if table["token"].to_pylist() != list(sequence[1:]):
                    raise StorageError(f"{path} is about other text than it should be; remove it.")
                yield Distributions(_column(table, "log_prob"), _column(table, "top_id"), _matrix(table, "ids"), _matrix(table, "log_probs"))
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{path} cannot be read ({str(error).splitlines()[0].rstrip('.')}); remove it.") from None


def divergence(reference: Floats, candidate: Floats) -> Floats:
    """Kullback-Leibler divergence per position over given tokens and the tail, in nats.

    Merging all other tokens into one can only lower a divergence (data-processing inequality), so this is a lower
    bound of that over the vocabulary.

    Args:
        reference: Log-probabilities of some tokens, a row per position.
        candidate: Those of the same tokens.
    """
    p, q = (np.maximum(_with_tail(side), FLOOR) for side in (reference, candidate))
    found: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return found


def tail(log_probs: Floats) -> Floats:
    """Log-probability of all tokens but the given ones, at least `FLOOR`."""
    rest = 1 - np.exp(log_probs.astype(np.float64)).sum(axis=1)
    found: Floats = np.log(np.where(rest > np.exp(FLOOR), rest, np.exp(FLOOR)))
    return np.where(np.isnan(rest), np.nan, found)


def _with_tail(log_probs: Floats) -> Floats:
    found: Floats = np.concatenate([log_probs.astype(np.float64), tail(log_probs)[:, None]], axis=1)
    return found


def _schema(width: int, facts: Mapping[str, str]) -> pa.Schema:
    return pa.schema(
        [
            ("sequence", pa.int32()), ("token", pa.int32()), ("log_prob", pa.float32()), ("top_id", pa.int32()),
            ("ids", pa.list_(pa.int32(), width)), ("log_probs", pa.list_(pa.float32(), width)), ("tail_log_prob", pa.float32()),
        ],
        metadata={"genopt": json.dumps(dict(facts))},
    )  # fmt: skip


def _table(place: int, sequence: Sequence[int], found: Distributions, schema: pa.Schema) -> pa.Table:
    width = found.ids.shape[1]
    columns: list[Any] = [
        np.full(len(found.ids), place, np.int32), np.asarray(sequence[1:], np.int32), found.log_probs, found.top_ids,
        pa.FixedSizeListArray.from_arrays(pa.array(found.ids.reshape(-1)), width),
        pa.FixedSizeListArray.from_arrays(pa.array(found.id_log_probs.reshape(-1)), width), tail(found.id_log_probs).astype(np.float32),
    ]  # fmt: skip
    return pa.table([pa.array(column) if isinstance(column, np.ndarray) else column for column in columns], schema=schema)


def _column(table: pa.Table, name: str) -> Any:
    return table[name].to_numpy()


def _matrix(table: pa.Table, name: str) -> Any:
    column = table[name].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
