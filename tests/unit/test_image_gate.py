"""Candidates that make the same images need no scorer; those that make others are as good only where a scorer says so."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from genopt import clock
from genopt.engines.images import GeneratedImage, ImageRequest
from genopt.plan import Artifact, Plan, Quality
from genopt.quality.image_difference import Image
from genopt.quality.image_gate import ImageGate, Pairs
from genopt.quality.image_scorers import FunctionScorer
from genopt.tasks.base import BenchConfig
from genopt.tasks.image_bench import outcome
from genopt.tasks.image_data import ImageSet
from genopt.tasks.image_judge import ImageCase, ImageJudge, contact_sheet

SIZE = 32


def picture(seed: int, brightness: float = 1.0) -> Image:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    blob = np.exp(-((x - random.random()) ** 2 + (y - random.random()) ** 2) / 0.05)
    return np.repeat((brightness * 255 * blob)[..., None], 3, axis=2).clip(0, 255).astype(np.uint8)


def brightness(_prompts: Sequence[str], images: Sequence[Image]) -> list[float]:
    return [float(image.max()) for image in images]


SCORER = FunctionScorer("brightness", brightness)


def judged(candidates: list[Image], scorer: FunctionScorer | None, look: int = 1, looks: tuple[int, ...] = (16, 32), prompts: int = 8) -> Quality:
    pairs = Pairs()
    originals = [picture(seed) for seed in range(len(candidates))]
    pairs.add([f"prompt {place % prompts}" for place in range(len(candidates))], originals, candidates, scorer)
    return ImageGate(0.99, looks, seed=0, scorer=scorer).decide(pairs, look)


def told(quality: Quality) -> tuple[str, str]:
    return outcome(quality, "2.00x the baseline's speed", 0.99)


def test_the_same_images_are_accepted_without_a_scorer() -> None:
    found = judged([picture(seed) for seed in range(32)], None)
    assert (found.verdict, found.metric, found.details["same_images"]) == ("accept", "ssim", True)
    status, reason = told(found)
    assert status == "accepted"
    assert reason.startswith("the same images")
    assert reason.endswith("2.00x the baseline's speed")


def test_different_images_are_undecided_without_a_scorer_and_it_is_said_what_would_help() -> None:
    found = judged([picture(seed + 100) for seed in range(32)], None)
    assert found.verdict == "inconclusive"
    assert "--scorer" in told(found)[1]
    assert told(found)[0] == "inconclusive"


def test_different_images_that_score_alike_are_as_good() -> None:
    found = judged([picture(seed + 100) for seed in range(32)], SCORER)
    assert (found.verdict, found.details["same_images"]) == ("accept", False)
    assert told(found)[1].startswith("different images, as good as the original's")


def test_the_first_look_rejects_and_never_accepts() -> None:
    assert judged([picture(seed, 0.5) for seed in range(16)], SCORER, look=0).verdict == "reject"
    good = judged([picture(seed) for seed in range(16)], SCORER, look=0)
    assert good.verdict == "inconclusive"
    assert "accepting takes 32 pairs" in str(good.details["reason"])


def test_the_same_images_are_accepted_at_the_last_look_only() -> None:
    """Of a candidate that ruins 3 % of its images, the first 16 have a chance of 61 % to be without one."""
    ruined = [picture(seed + 100 if seed == 20 else seed) for seed in range(32)]
    early = judged(ruined[:16], None, look=0)
    assert (early.verdict, early.details["same_images"]) == ("inconclusive", True)
    assert "accepting takes 32 pairs" in str(early.details["reason"])
    assert judged(ruined, None).verdict == "inconclusive"


def png(image: Image) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(image).save(stream, format="png")
    return base64.b64encode(stream.getvalue())


class Camera:
    """A process that makes the pictures of its seeds."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[GeneratedImage]:
        return [GeneratedImage(png=png(picture(request.seed)), started_ns=0, timestamps_ns=(), finished_ns=0) for request in requests]


@pytest.mark.parametrize(("seconds", "verdict", "images"), [(600.0, "accept", 32), (0.0, "inconclusive", 16)])
def test_a_candidate_whose_time_ends_before_the_last_look_is_undecided(tmp_path: Path, seconds: float, verdict: str, images: int) -> None:
    config = BenchConfig(
        original=str(tmp_path), artifact=Artifact(digest="d", path=str(tmp_path), bytes=1), data="", logs="", quality=0.99, concurrency=(1,),
        output_tokens=1, threads=1, parameters=1, seed=0, store=str(tmp_path / "store"),
    )  # fmt: skip
    data = ImageSet(
        pairs=tuple((f"prompt {seed % 8}", seed) for seed in range(32)), prompts=("a",), source="s", digest="d", calibration_source="s",
        calibration_digest="d",
    )  # fmt: skip
    camera: Any = Camera()
    judge, case = ImageJudge(config, data, Plan(name="original", steps=(), engine="e")), ImageCase(camera)
    judge.prepare(camera, 0.01, clock.now() + 600, lambda _: None)
    judge.first_look(case, lambda _: None)
    found = judge.verdict(case, clock.now() + seconds, lambda _: None)
    assert (found.verdict, found.n) == (verdict, images)
    assert ("the time for this candidate ended" in told(found)[1]) == (verdict == "inconclusive")


def test_worse_images_are_rejected() -> None:
    found = judged([picture(seed, 0.9) for seed in range(32)], SCORER)
    assert found.verdict == "reject"
    assert told(found)[1].startswith("worse images")


@pytest.mark.parametrize("scorer", [None, SCORER])
def test_black_images_are_implausible_and_never_fast(scorer: FunctionScorer | None) -> None:
    found = judged([np.zeros((SIZE, SIZE, 3), np.uint8), *(picture(seed) for seed in range(1, 32))], scorer)
    assert found.verdict == "anomalous"
    assert told(found) == ("rejected", "implausible images (1 images are blank that the original’s are not); 2.00x the baseline's speed")


def test_a_handful_of_images_decides_nothing() -> None:
    assert judged([picture(seed) for seed in range(4)], None, look=0, looks=(4,)).verdict == "inconclusive"


@pytest.mark.parametrize("scorer", [None, SCORER])
@pytest.mark.parametrize(("prompts", "verdict"), [(1, "inconclusive"), (7, "inconclusive"), (8, "accept")])
def test_many_images_of_few_prompts_accept_nothing(scorer: FunctionScorer | None, prompts: int, verdict: str) -> None:
    found = judged([picture(seed) for seed in range(32)], scorer, prompts=prompts)
    assert found.verdict == verdict
    assert ("give more prompts" in told(found)[1]) == (verdict == "inconclusive")


def test_the_contact_sheet_shows_the_first_pairs_and_those_that_differ_most() -> None:
    pairs = Pairs()
    candidates = [picture(seed) for seed in range(8)]
    candidates[6] = picture(99)
    pairs.add([f"prompt {place}" for place in range(8)], [picture(seed) for seed in range(8)], candidates, None)
    sheet: Any = contact_sheet(pairs)
    assert [item["prompt"] for item in sheet][:4] == ["prompt 0", "prompt 1", "prompt 2", "prompt 6"]
