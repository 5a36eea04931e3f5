"""What is asked of a run on a pipeline, and cannot be had there, is refused before anything is measured."""

from __future__ import annotations

from typing import Any

import pytest

from genopt.errors import SpecError
from genopt.spec import build
from genopt.tasks.text_to_image import TextToImage


@pytest.mark.parametrize(
    ("values", "says"),
    [({"slo": "ttft_p99=300ms"}, "--slo"), ({"arrivals": "poisson:2"}, "--arrivals"), ({"eval_tasks": ["arc_easy"]}, "--eval-task")],
)
def test_what_only_texts_have_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        TextToImage.require_inputs(build({"model": "m", **values}))


def test_what_it_takes_is_not() -> None:
    TextToImage.require_inputs(build({"model": "m", "objective": "throughput", "concurrency": (1, 4), "seed": 2**32 - 1}))
