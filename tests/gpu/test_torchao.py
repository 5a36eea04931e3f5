"""What torchao makes of matrices on a real GPU, and what the compiled step answers with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genopt.engines.base import GenerationRequest
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue
from genopt.process import SessionProcess
from genopt.techniques.base import TransformContext
from genopt.techniques.torchao_float8 import Float8Dynamic, Float8WeightOnly
from genopt.techniques.torchao_int4 import Int4WeightOnly
from genopt.techniques.torchao_int8 import Int8Dynamic, Int8WeightOnly
from genopt.testing.contracts import check_technique
from genopt.testing.tiny_models import write_tiny_llama

pytestmark = pytest.mark.gpu

PROMPT = tuple((3 * place) % 256 for place in range(60))
CASES: list[tuple[Any, dict[str, JsonValue], float]] = [
    (Int8WeightOnly, {}, 0.1), (Float8WeightOnly, {}, 0.2), (Float8Dynamic, {}, 0.2), (Float8Dynamic, {"head": True}, 0.3),
    (Int4WeightOnly, {"group_size": 32}, 0.5), (Int4WeightOnly, {"group_size": 32, "method": "minmax"}, 0.5),
    (Int4WeightOnly, {"group_size": 64, "head": True}, 0.7),
]  # fmt: skip
"""A technique, its parameters, and how far log-probabilities may be from the original's in the mean."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), tied=False)


def said(folder: Path, options: dict[str, JsonValue], log: Path) -> tuple[np.ndarray[Any, Any], tuple[int, ...]]:
    """Log-probabilities of the prompt and a greedy answer, from a process of its own: that of another session still holds its graphs."""
    with SessionProcess("torch", folder, options, log=log, timeout_s=300) as session:
        (answer,) = session.generate([GenerationRequest(prompt_ids=PROMPT, max_new_tokens=12)])
        return np.array(session.score([PROMPT]).log_probs[0]), answer.token_ids


@pytest.mark.parametrize(("technique", "params", "apart"), CASES)
def test_a_rounded_model_loads_back_and_says_about_what_the_original_says(
    model: Path, technique: Any, params: dict[str, JsonValue], apart: float, tmp_path: Path
) -> None:
    context = TransformContext(original=str(model), calibration=None, seed=0, threads=2, time_limit_s=300)
    folder = check_technique(technique.name, model, params, context, tmp_path)
    expected, _ = said(model, {}, tmp_path / "original.log")
    found, eager = said(folder, {}, tmp_path / "eager.log")
    _, compiled = said(folder, {"compile": True, "cache_tokens": 128}, tmp_path / "compiled.log")
    print(technique.name, params, "mean difference", np.abs(found - expected).mean())
    assert np.abs(found - expected).mean() < apart
    assert eager[:1] == compiled[:1], "both read the prompt alike"
    assert len(compiled) == 12


def test_what_single_streams_cannot_multiply_is_refused(model: Path) -> None:
    with pytest.raises(InfeasibleError, match="only for 17 tokens at once"):
        Int8Dynamic.check(model, {})
