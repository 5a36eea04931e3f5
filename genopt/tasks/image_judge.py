"""Judges text-to-image candidates against the original on one node, image by image of the same prompts and seeds.

The original makes its images once; they are kept in the store for all candidates, runs and nodes that agree in what decides
about them. A candidate is first judged on few images, which is enough for the worst.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from pydantic import JsonValue

from genopt import clock
from genopt.engines.images import ImageRequest
from genopt.measure.machine import device_of
from genopt.plan import Plan, Quality
from genopt.process import ImageProcess
from genopt.quality.image_difference import Image
from genopt.quality.image_gate import ImageGate, Pairs
from genopt.quality.image_scorers import ImageScorer, load_scorer
from genopt.store.artifacts import step_key
from genopt.store.shared import open_store
from genopt.tasks.base import BenchConfig, Progress
from genopt.tasks.image_data import ImageSet

VERSION = 1
"""Rises when the stored images change their meaning."""
PART = 16
"""Images that are made and stored together, and enough to reject the worst."""
REFERENCE_SHARE = 0.2
"""Share of the time that is left which the original's images may take."""
SHEET = "contact_sheet"
"""Detail of a verdict: a few pairs of small images, as the report shows them."""
SHOWN, THUMBNAIL = 3, 96
"""Pairs of the contact sheet from the beginning, and as many that differ most; and pixels of their longer side."""


@dataclass
class ImageCase:
    """A candidate before the judge."""

    session: ImageProcess
    found: Pairs = field(default_factory=Pairs)
    quality: Quality | None = None
    pace: float = 0.0


class ImageJudge:
    """The judge of one bench.

    Args:
        config: The bench's.
        data: Prompts and seeds.
        plan: How the original is run.
    """

    def __init__(self, config: BenchConfig, data: ImageSet, plan: Plan) -> None:
        self._config, self._data, self._plan = config, data, plan
        self._store = open_store(config.store)
        self._originals: list[Image] = []
        self._gate: ImageGate | None = None

    def prepare(self, original: ImageProcess, image_s: float, deadline: float, progress: Progress) -> None:
        """Takes the original's images from the store, or has it make them.

        Args:
            original: The open original.
            image_s: Seconds that one of its images takes.
            deadline: When the run ends; a share of the time until then goes into images.
            progress: Told what happens.

        Raises:
            GenoptError: The original makes no images, or the scorer cannot be loaded or does not suit the prompts.
        """
        scorer: ImageScorer | None = load_scorer(self._data.scorer) if self._data.scorer else None
        if scorer is not None:
            scorer.require_usable(prompt for prompt, _ in self._data.pairs)
        affordable = int(REFERENCE_SHARE * max(0.0, deadline - clock.now()) / max(image_s, 1e-3))
        parts = max(1, min(affordable, len(self._data.pairs)) // PART)
        looks = sorted({1, parts // 2, parts} - {0})
        self._gate = ImageGate(self._config.quality, [PART * look for look in looks], seed=self._config.seed, scorer=scorer)
        for part in range(parts):
            progress(f"making the original's images ({PART * (part + 1)} of {PART * parts})")
            self._originals += self._part(original, part)

    @property
    def _ready(self) -> ImageGate:
        if self._gate is None:
            raise RuntimeError("prepare comes first")
        return self._gate

    def facts(self) -> dict[str, JsonValue]:
        """What the report says about the evaluation."""
        data, gate = self._data, self._ready
        return {
            "source": data.source, "digest": data.digest, "calibration_source": data.calibration_source,
            "calibration_digest": data.calibration_digest, "prompts": len({prompt for prompt, _ in data.pairs[: gate.looks[-1]]}),
            "available_images": gate.looks[-1], "looks": list(gate.looks), "scorer": gate.scorer.name if gate.scorer else None,
            "example": min(data.prompts, key=len),
        }  # fmt: skip

    def first_look(self, case: ImageCase, progress: Progress) -> Quality:
        """Judges on few images: enough to reject what is clearly worse. Where there is no bar, nothing is, and these are all."""
        quality = self._look(case, 0, progress)
        if not self._config.quality and quality.ratio > 0:  # of unusable images it is 0
            case.quality = quality = quality.model_copy(update={"verdict": "accept", "details": {**quality.details, "reason": "there is no bar"}})
        return quality

    def verdict(self, case: ImageCase, deadline: float, progress: Progress) -> Quality:
        """Asks for more images until the gate decides, there are no more or the time is up."""
        quality = case.quality or self.first_look(case, progress)
        for look in range(1, len(self._ready.looks)):
            if quality.verdict != "inconclusive":
                break
            missing = self._ready.looks[look] - len(case.found.prompts)
            if clock.now() + case.pace * missing > deadline:
                stopped = "the time for this candidate ended before the verdict"
                quality = quality.model_copy(update={"details": {**quality.details, "stopped": stopped, "reason": stopped}})
                break
            quality = self._look(case, look, progress)
        return _shown(quality, case)

    def of_baseline(self, case: ImageCase, progress: Progress) -> Quality:
        """On few images: it is no candidate, and they show whether it makes the original's, while the time is that of candidates."""
        return _shown(self._look(case, 0, progress), case).model_copy(update={"verdict": "reference"})

    def _look(self, case: ImageCase, look: int, progress: Progress) -> Quality:
        """Has the candidate make the images that a look adds, and asks the gate."""
        gate, first = self._ready, len(case.found.prompts)
        last = gate.looks[look]
        progress(f"judging {last} images")
        if last > first:
            started = clock.now()
            made = self._made(case.session, first, last)
            case.found.add([prompt for prompt, _ in self._data.pairs[first:last]], self._originals[first:last], made, gate.scorer)
            case.pace = (clock.now() - started) / (last - first)
        case.quality = gate.decide(case.found, look)
        return case.quality

    def _made(self, session: ImageProcess, first: int, last: int) -> list[Image]:
        """One after the other, as they are timed: another batch rounds otherwise, and may run other kernels."""
        asked = [ImageRequest(prompt=prompt, seed=seed) for prompt, seed in self._data.pairs[first:last]]
        return [session.generate([request])[0].pixels() for request in asked]

    def _part(self, original: ImageProcess, part: int) -> list[Image]:
        first, last = PART * part, PART * (part + 1)

        def make(folder: Path) -> tuple[str, ...]:
            for place, image in enumerate(self._made(original, first, last)):
                PillowImage.fromarray(image).save(folder / f"{place:03d}.png")
            return ("images",)

        return self._artifact(self._facts(first, last), make)

    def _facts(self, first: int, last: int) -> dict[str, object]:
        config = self._config
        return {
            "model": config.artifact.digest, "pairs": hashlib.sha256(json.dumps(self._data.pairs[first:last]).encode()).hexdigest(),
            "engine": self._plan.engine, "options": json.dumps(self._plan.options, sort_keys=True),
            "device": device_of(config.environment),
            "libraries": json.dumps(config.libraries, sort_keys=True), "fresh": config.run if config.reuse == "nothing" else "",
        }  # fmt: skip

    def _artifact(self, facts: dict[str, object], make: Callable[[Path], tuple[str, ...]]) -> list[Image]:
        folder = Path(self._store.build(step_key(self._config.artifact.digest, "images", VERSION, facts, {}), make).path)
        return [np.asarray(PillowImage.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]


def _shown(quality: Quality, case: ImageCase) -> Quality:
    return quality.model_copy(update={"details": {**quality.details, SHEET: contact_sheet(case.found)}})


def contact_sheet(pairs: Pairs) -> list[JsonValue]:
    """The first pairs, and those that differ most, as small images."""
    differing = np.argsort(pairs.ssim)[:SHOWN].tolist() if pairs.differences else []
    chosen = dict.fromkeys([*range(min(SHOWN, len(pairs.prompts))), *differing])
    return [
        {
            "prompt": pairs.prompts[place], "ssim": pairs.differences[place]["ssim"], "original": thumbnail(pairs.originals[place]),
            "candidate": thumbnail(pairs.candidates[place]),
        }
        for place in chosen
    ]  # fmt: skip


def thumbnail(image: Image) -> str:
    """A small PNG in base64, of few colours where it is a picture of many."""
    small = PillowImage.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    (small.quantize(128) if small.width * small.height > 32 * 32 else small).save(stream, format="png", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
