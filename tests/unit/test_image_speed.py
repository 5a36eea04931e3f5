"""Sessions that make images are timed in turns; what they did not make is no time."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest

from genopt.engines.images import GeneratedImage, ImageRequest, OnStep, require_shape
from genopt.errors import SpecError, StageError
from genopt.measure.duel import CANDIDATE
from genopt.measure.image_speed import ImageWorkload, Timing, compare, measure_aa

MS = 1_000_000


class Clocked:
    """A session on a clock of its own: each step takes as long as it is told to, another image of a batch half as long again."""

    def __init__(self, step_ms: float, steps: int = 4, cancels: bool = False) -> None:
        self._step_ms, self._steps, self._cancels = step_ms, steps, cancels
        self.asked: list[ImageRequest] = []

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        self.asked += requests
        step_ns = int(self._step_ms * MS * (1 + 0.5 * (len(requests) - 1)))
        times = tuple(step_ns * (step + 1) for step in range(self._steps))
        ended = "cancelled" if self._cancels else "done"
        image = GeneratedImage.model_validate(
            {"png": base64.b64encode(b"x"), "started_ns": 0, "timestamps_ns": times, "finished_ns": times[-1] + 2 * MS, "finish_reason": ended}
        )
        return [image for _ in requests]


WORKLOAD = ImageWorkload(prompts=("a", "b"), concurrency=(1, 4))


def test_latency_steps_and_rates_are_those_of_their_definitions() -> None:
    found = compare(Clocked(10), Clocked(20), WORKLOAD, seed=0, half_width=0.5, max_rounds=6, time_cap_s=5)
    assert found.candidate_metrics["latency_ms"].value == 42
    assert found.candidate_metrics["step_ms"].value == 10
    assert found.candidate_metrics["images_per_s@1"].value == pytest.approx(1000 / 42)
    assert found.candidate_metrics["images_per_s@4"].value == pytest.approx(4 * 1000 / (4 * 10 * 2.5 + 2))
    assert found.candidate_metrics["latency_ms"].conditions["steps"] == 4
    assert found.ratio.value == pytest.approx(82 / 42)
    assert found.decided


def test_both_sessions_get_the_same_prompts_and_seeds_in_alternating_order() -> None:
    one, other = Clocked(10), Clocked(10)
    found = compare(one, other, WORKLOAD, seed=0, half_width=0.5, max_rounds=4, time_cap_s=5)
    assert [(item.prompt, item.seed) for item in one.asked] == [(item.prompt, item.seed) for item in other.asked]
    singles = [(row["round"], row["session"]) for row in found.raw if row["phase"] == "single"]
    assert singles[:4] == [(0, "candidate"), (0, "baseline"), (1, "baseline"), (1, "candidate")]


def test_a_baseline_whose_batches_are_known_makes_single_images_only() -> None:
    one, other = Clocked(10), Clocked(20)
    found = compare(one, other, WORKLOAD, seed=0, half_width=0.5, max_rounds=4, time_cap_s=5, batched=CANDIDATE)
    assert {row["session"] for row in found.raw if str(row["phase"]).startswith("throughput")} == {"candidate"}
    assert set(found.candidate_metrics) - set(found.baseline_metrics) == {"images_per_s@4"}


def test_a_session_against_itself_is_as_fast() -> None:
    assert measure_aa(Clocked(10), WORKLOAD, seed=0, half_width=0.5, time_cap_s=5).value == 1


def test_an_image_that_was_not_made_is_no_time() -> None:
    with pytest.raises(StageError, match="made no image"):
        compare(Clocked(10, cancels=True), Clocked(10), WORKLOAD, seed=0, half_width=0.5, max_rounds=4, time_cap_s=5)


def test_a_single_step_takes_as_long_as_the_way_to_it() -> None:
    assert Timing.of(Clocked(10, steps=1).generate([ImageRequest(prompt="a")])[0]).step_ms == 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"steps": 0}, "0 steps"), ({"width": 100}, "multiple of 8"), ({"height": -8}, "multiple of 8"), ({"guidance": -1.0}, "negative")],
)
def test_what_no_pipeline_can_make_is_refused_by_name(changes: dict[str, float], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        require_shape([ImageRequest.model_validate({"prompt": "a", **changes})])


def test_only_equal_shapes_are_a_batch() -> None:
    with pytest.raises(SpecError, match="one batch"):
        require_shape([ImageRequest(prompt="a"), ImageRequest(prompt="a", width=64)])
