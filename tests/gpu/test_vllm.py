"""Whatever a search may propose for vLLM on a GPU opens and answers. Needs the environment `vllm`, and minutes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from genopt import catalog
from genopt.engines.base import GenerationRequest
from genopt.plan import Plan, Step
from genopt.process import SessionProcess
from genopt.search.space import ENGINE, Choice, Point
from genopt.tasks.text_generation import TextGeneration
from genopt.techniques.base import TransformContext
from genopt.testing.random_models import provide_random_llama

pytestmark = pytest.mark.gpu

PROMPTS = [tuple((place * stride) % 250 + 5 for place in range(600)) for stride in (3, 7, 11, 13)]
"""Longer than a step of Humming's kernels."""
ALIKE = 0.5
"""Least correlation of log-probabilities with the original's. On an H200 random weights left 0.9996 as they are, 0.95 to 0.998 in 8 bits, and 0.65 to
0.74 in 4 bits."""


def plans() -> list[Plan]:
    """Plans of the search space for vLLM in which each two of its choices meet, found greedily."""

    def pairs(point: Point) -> set[tuple[tuple[str, Choice], ...]]:
        return set(combinations(sorted(point.items(), key=str), 2))

    space = TextGeneration.space()
    known = [point for point in space.points() if point[ENGINE] == "vllm" and not point["drop_layers"]]
    left = {pair for point in known for pair in pairs(point)}
    found = []
    while left:
        found.append(max(known, key=lambda point: len(left & pairs(point))))
        left -= pairs(found[-1])
    return [space.plan(point) for point in found]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return provide_random_llama(tmp_path_factory.mktemp("random") / "llama-1b", "llama-1b")


@pytest.fixture(scope="module")
def rounded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[Step, ...]], Path]:
    """Makes what steps make of the model, each once."""
    made: dict[str, Path] = {}

    def make(steps: tuple[Step, ...]) -> Path:
        folder = model
        for step in steps:
            key = step.model_dump_json()
            if key not in made:
                technique, made[key] = catalog.load("techniques", step.technique), tmp_path_factory.mktemp("rounded")
                technique.check(folder, step.params)
                context = TransformContext(original=str(model), calibration=None, seed=0, threads=8, time_limit_s=300)
                technique.apply(folder, made[key], step.params, context, print)
            folder = made[key]
        return folder

    return make


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-probabilities of the first prompt."""
    with SessionProcess("torch", model, {}, log=tmp_path_factory.mktemp("log") / "torch.log", timeout_s=300) as session:
        return np.array(session.score(PROMPTS[:1]).log_probs[0])


@pytest.mark.parametrize("plan", plans(), ids=lambda plan: plan.name)
def test_each_kind_of_candidate_opens_and_answers(
    plan: Plan,
    rounded: Callable[[tuple[Step, ...]], Path],
    expected: np.ndarray[tuple[int], np.dtype[np.float64]],
    tmp_path: Path,
) -> None:
    requests = [GenerationRequest(prompt_ids=prompt, max_new_tokens=24) for prompt in PROMPTS]
    with SessionProcess(plan.engine, rounded(plan.steps), plan.options, log=tmp_path / "vllm.log", timeout_s=300) as session:
        assert [len(answer.token_ids) for answer in session.generate(requests[:1])] == [24]
        assert [len(answer.token_ids) for answer in session.generate(requests)] == [24] * len(requests)
        alike = np.corrcoef(session.score(PROMPTS[:1]).log_probs[0], expected)[0, 1]
    print(plan.name, "correlation", alike)
    assert alike > ALIKE
