"""What a candidate said about some text, as a file: a verdict can be reached again from it, at another bar too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from genopt.engines.distribution import Floats
from genopt.errors import StorageError
from genopt.plan import Earlier
from genopt.quality.reference import Compared

FILE = "evidence.parquet"
TOLERANCE = 1e-3
"""Nats per token by which a sequence may score otherwise the second time: a tenth of what moves a verdict at the 99 % bar."""

_TYPES = {name: pa.list_(pa.int32() if name.endswith("ids") else pa.float64()) for name in Compared.model_fields}


def write(found: Compared, path: Path, origin: Earlier) -> None:
    """Writes a comparison as Parquet, a row per sequence; the caller makes the file durable.

    Args:
        found: The comparison.
        path: File to write.
        origin: Where and when it was made.
    """
    schema = pa.schema(list(_TYPES.items()), metadata={"genopt": origin.model_dump_json()})
    pq.write_table(pa.table({name: list(map(list, rows)) for name, rows in vars(found).items()}, schema=schema), path, compression="zstd")


def read(path: Path) -> tuple[Compared, Earlier]:
    """A comparison that was written, number for number, and where it comes from.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        table = pq.read_table(path)
        origin = Earlier.model_validate(json.loads(table.schema.metadata[b"genopt"]))
        return Compared.model_validate({name: table[name].to_pylist() for name in Compared.model_fields}), origin
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValidationError) as error:
        raise StorageError(f"{path} cannot be read ({str(error).splitlines()[0].rstrip('.')}); remove it.") from None


def agrees(kept: Compared, now: Floats) -> bool:
    """Whether a sequence that is scored again comes out as it did; what is not a number never does.

    Args:
        kept: An earlier comparison.
        now: Log-probabilities of the tokens of its first sequence.
    """
    return len(now) == len(kept.log_probs[0]) and bool(abs(float(np.mean(now)) - float(np.mean(kept.log_probs[0]))) <= TOLERANCE)
