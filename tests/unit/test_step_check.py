"""A step may round otherwise than its model, and no more than that."""

from __future__ import annotations

import numpy as np
import pytest

from genopt.engines.step_check import require_alike
from genopt.errors import InfeasibleError

RANDOM = np.random.default_rng(0)
EXPECTED = (5 + 3 * RANDOM.standard_normal((4, 1000))).astype(np.float32)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_other_rounding_is_let_through(share: float) -> None:
    require_alike(EXPECTED + share * 3 * RANDOM.standard_normal(EXPECTED.shape).astype(np.float32), EXPECTED)


def test_one_row_of_four_may_be_another() -> None:
    found = EXPECTED.copy()
    found[2] = -found[2]
    require_alike(found, EXPECTED)


@pytest.mark.parametrize("found", [EXPECTED[:, ::-1], EXPECTED * np.float32("nan"), np.zeros_like(EXPECTED), EXPECTED + 10])
def test_what_has_little_to_do_with_it_is_refused(found: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    with pytest.raises(InfeasibleError, match="leave compile out"):
        require_alike(found, EXPECTED)
