"""The stage that tells what rounding one part of a model at a time costs.

Each family of matrices, and then each decoder layer, is rounded on its own, block by block, while the rest stays as it
is; the divergence from the original's predictions on calibration text is what it costs. Evaluation text is left alone, so
that no format is chosen by the text that judges it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from genopt import clock
from genopt.plan import Record
from genopt.search.precision import BITS, Part, Sensitivity

if TYPE_CHECKING:
    from genopt.engines.torch_session import TorchSession
    from genopt.models.matrices import Matrix

BLOCK_SIZE = 32
MARGIN = 1.5
"""A part starts only where this many times what the last one took is left."""


class SensitivityRequest(Record):
    """What a pass measures.

    Attributes:
        model: Folder of the original.
        calibration: Parquet file with calibration sequences.
        tokens: Tokens of it that are compared.
        threads: CPU threads.
        share: Which of so many equal shares of the parts this pass takes, as (number from 0, count).
    """

    model: str
    calibration: str
    tokens: int
    threads: int
    share: tuple[int, int] = (0, 1)


def measure(payload: dict[str, Any], ends: float) -> dict[str, Any]:
    """Measures a share of a model's parts, families first, as far as the time goes.

    Args:
        payload: A `SensitivityRequest`.
        ends: When the stage is killed, on `clock.now`; it ends before.

    Returns:
        A `Sensitivity`; families that are missing did not fit the time.
    """
    from genopt.engines.torch_options import TorchOptions
    from genopt.engines.torch_session import TorchSession
    from genopt.techniques.calibration import calibration_sequences

    asked = SensitivityRequest.model_validate(payload)
    sequences = calibration_sequences(asked.calibration, asked.tokens)
    session = TorchSession(Path(asked.model), TorchOptions(dtype="float32", threads=asked.threads))
    with tempfile.TemporaryDirectory(prefix="genopt-sensitivity-") as scratch:
        found = sensitivity(session, sequences, Path(scratch), asked.share, lambda: ends - clock.now())
    return found.model_dump(mode="json")


def sensitivity(
    session: TorchSession, sequences: Sequence[Sequence[int]], scratch: Path, share: tuple[int, int], left_s: Callable[[], float]
) -> Sensitivity:
    """Rounds one part after the other and compares what the session says with what it said before.

    Args:
        session: The original; as it was afterwards.
        sequences: Token ids.
        scratch: A folder for the original's distributions.
        share: See `SensitivityRequest`.
        left_s: Tells the seconds that are left.
    """
    from genopt.models.matrices import rounded_to
    from genopt.quality.reference import FILE, compare, record

    started = left_s()
    record(session, sequences, scratch / FILE, {})
    took_s = (started - left_s()) * len(BITS)
    first, count = share
    parts: list[Part] = []
    for kind, name, modules in itertools.islice(_parts(session), first, None, count):
        if left_s() < MARGIN * took_s:
            break
        started, kl = left_s(), {}
        for bits in BITS:
            with rounded_to(modules, bits, BLOCK_SIZE):
                rows = compare(session, sequences, scratch / FILE).kl
            kl[bits] = float(np.concatenate([np.array(row) for row in rows]).mean())
        took_s = started - left_s()
        parts.append(Part(name=name, kind=kind, weights=sum(module.weight.numel() for module in modules), kl=kl))
        print(f"{kind} {name}: " + ", ".join(f"KL {cost:.5f} at {bits} bits" for bits, cost in kl.items()), flush=True)
    return Sensitivity(parts=tuple(parts), block_size=BLOCK_SIZE, tokens=sum(map(len, sequences)))


def _parts(session: TorchSession) -> Iterator[tuple[Literal["family", "layer"], str, list[Matrix]]]:
    from genopt.models.matrices import by_family, by_layer

    for name, modules in by_family(session.model).items():
        yield "family", name, modules
    for number, modules in enumerate(by_layer(session.model)):
        yield "layer", str(number), modules
