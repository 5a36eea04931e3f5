"""Whether a compiled step computes what its model does: compilers err on some processors, and quality is judged without the step."""

from __future__ import annotations

import numpy as np

from genopt.engines.rows import Logits
from genopt.errors import InfeasibleError

PROMPT, STEPS = 8, 4
"""Tokens that are read before the steps, and steps."""
MOST_APART = 0.5
"""Of the logits' own deviation; other rounding makes hundredths of it, and unrelated logits are 1.4 apart."""


def require_alike(found: Logits, expected: Logits) -> None:
    """Refuses steps whose logits have little to do with those of the model.

    Args:
        found: Those of the steps, a row each.
        expected: Those of the model for the same tokens.

    Raises:
        InfeasibleError: They are too far apart in half of the rows or more.
    """
    centered = expected - expected.mean(axis=-1, keepdims=True)
    apart = np.linalg.norm(found - expected, axis=-1) / np.maximum(np.linalg.norm(centered, axis=-1), np.finfo(np.float32).tiny)
    if not np.median(apart) <= MOST_APART:  # also where they are no numbers
        raise InfeasibleError(
            "What PyTorch compiles of a decode step computes something else than this model does on this machine; leave compile out."
        )
