"""Stages of the image task that run in a process of their own: choose prompts and seeds, profile the original."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from genopt.errors import DataError
from genopt.measure.prompts import read_prompts
from genopt.plan import Record
from genopt.quality.image import LEAST_PROMPTS
from genopt.store.files import write_atomically
from genopt.tasks.base import Prepared

FILE, CARD = "prompts.txt", "card.json"
"""Prompts that come with a pipeline: one a line, or a list under `prompts`."""
SCORER = "classifier"
"""Folder of a pipeline with a classifier that reads its images."""
MOST_PAIRS, SEEDS = 256, 8
"""Images of each candidate that may be judged, and of each prompt; the bench takes as many as its time allows."""
CALIBRATION_SHARE = 0.2
SUBJECTS = (
    "a lighthouse at dusk", "a red bicycle leaning against a brick wall", "a bowl of ripe oranges", "a cat asleep on a windowsill",
    "a snowy mountain under a clear sky", "an old wooden boat on a lake", "a street market in the rain", "a portrait of an old sailor",
    "a field of sunflowers", "a steam train crossing a bridge", "a cup of coffee beside an open book", "an owl on a branch at night",
    "a desert with tall cacti", "a glass vase with tulips", "a child flying a kite", "a stone bridge over a stream",
    "a fox in the snow", "a city skyline at sunrise", "a violin on a chair", "a waterfall in a green forest",
    "a plate of pancakes with berries", "a blue vintage car", "a dog running on a beach", "a library with high shelves",
    "a hot air balloon above hills", "a potter at work", "an astronaut in an orchard", "a chess board in the sun",
    "a harbour full of fishing boats", "a sleeping baby elephant", "a candle in a dark room", "a paper crane on a table",
)  # fmt: skip
"""What is asked for where neither the pipeline nor the user brings prompts."""


class ImageSet(Record):
    """What a run asks for.

    Attributes:
        pairs: Prompt and seed of each image that is judged, in order.
        prompts: Prompts for speed.
        source: Where the prompts come from.
        digest: Digest of prompts and seeds.
        scorer: What scores images: a folder, `module:callable`, or an empty text.
        calibration_source: Where the calibration prompts come from.
        calibration_digest: Digest of them.
    """

    pairs: tuple[tuple[str, int], ...] = Field(min_length=1)
    prompts: tuple[str, ...] = Field(min_length=1)
    source: str
    digest: str
    scorer: str = ""
    calibration_source: str
    calibration_digest: str


def prepare(payload: dict[str, Any], _ends: float) -> dict[str, Any]:
    """Chooses prompts and seeds; writes `image_set.json` and `calibration.parquet`.

    Args:
        payload: `model` (folder), `eval_data`, `calib_data`, `prompts` (paths or None), `scorer`, `seed`, `destination` (folder).

    Raises:
        DataError: A file cannot be used, evaluation and calibration share prompts, or the pipeline does not take one of them.
    """
    folder, destination, seed = Path(payload["model"]), Path(payload["destination"]), int(payload["seed"])
    texts, source = evaluation_prompts(folder, payload["eval_data"])
    _require_usable(folder, texts if payload["prompts"] is None else [*texts, *plain_prompts(Path(payload["prompts"]).expanduser())])
    if payload["calib_data"] is None:
        evaluated, calibrated = _divided(texts, seed)
        calibration_source = source
    else:
        evaluated, calibrated, calibration_source = texts, plain_prompts(Path(payload["calib_data"]).expanduser()), str(payload["calib_data"])
        shared = set(evaluated) & set(calibrated)
        if shared:
            raise DataError(f"{len(shared)} prompts are in the evaluation and the calibration data, such as {min(shared)!r}; take them out of one.")
    timed = evaluated if payload["prompts"] is None else plain_prompts(Path(payload["prompts"]).expanduser())
    pairs = tuple((evaluated[index % len(evaluated)], seed + index) for index in range(min(MOST_PAIRS, SEEDS * len(evaluated))))
    destination.mkdir(parents=True, exist_ok=True)
    table = destination / "calibration.parquet"
    pq.write_table(pa.table({"prompt": pa.array(calibrated, pa.string())}), table)
    scorer = _scorer(folder, payload.get("scorer"))
    image_set = ImageSet(
        pairs=pairs, prompts=tuple(timed), source=source, digest=_digest(list(pairs)), scorer=scorer, calibration_source=calibration_source,
        calibration_digest=_digest(calibrated),
    )  # fmt: skip
    write_atomically(destination / "image_set.json", image_set.model_dump_json())
    found = Prepared(
        data=str(destination / "image_set.json"), calibration=str(table), calibration_digest=image_set.calibration_digest,
        digest=_digest(image_set.model_dump(mode="json")),
    )  # fmt: skip
    return found.model_dump(mode="json")


def _scorer(folder: Path, given: str | None) -> str:
    """The user's, by a path that holds in other folders too; else the pipeline's own classifier."""
    if given is not None:
        here = Path(given).expanduser()
        return str(here.absolute()) if here.is_dir() else given
    return str(folder / SCORER) if (folder / SCORER / "config.json").is_file() else ""


def plain_prompts(path: Path) -> list[str]:
    """Prompts of a file, each once; see `genopt.measure.prompts.iterate_prompts`.

    Raises:
        DataError: The file cannot be used, or holds conversations.
    """
    listed = read_prompts(path)
    texts = [prompt for prompt in listed if isinstance(prompt, str)]
    if len(texts) < len(listed):
        raise DataError(f"{path} holds conversations, and images are made from single texts; give them under `prompt`.")
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def evaluation_prompts(folder: Path, eval_data: str | None) -> tuple[list[str], str]:
    """What a pipeline is asked, each prompt once, and where that comes from.

    Args:
        folder: The pipeline.
        eval_data: The user's file; None takes the pipeline's own prompts or classes, else generic ones that it reads whole.

    Raises:
        DataError: The file cannot be used, or there is no prompt that fits.
    """
    if eval_data is not None:
        return plain_prompts(Path(eval_data).expanduser()), eval_data
    if (folder / FILE).is_file():
        return plain_prompts(folder / FILE), f"{FILE} of the pipeline"
    if listed := _on_card(folder):
        return listed, f"{CARD} of the pipeline"
    from genopt.models.pipeline_prompts import prompts_of

    prompts = prompts_of(folder)
    if prompts.examples:
        return list(prompts.examples), "classes of the pipeline"
    found = [text for text in SUBJECTS if not prompts.objection(text)]
    if not found:
        raise DataError(f"{folder} reads prompts too short for the generic ones; give some with --eval-data, or in a {FILE} beside its components.")
    return found, "generic prompts that come with genopt"


def _on_card(folder: Path) -> list[str]:
    """Prompts that the pipeline's card lists, if it has such."""
    try:
        listed = json.loads((folder / CARD).read_text(encoding="utf-8")).get("prompts")
    except (OSError, ValueError, AttributeError):
        return []
    return [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []


def _divided(texts: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Evaluation and calibration prompts in a seeded order; of as few as a verdict takes all evaluate, and nothing calibrates."""
    shuffled = [texts[place] for place in np.random.default_rng(seed).permutation(len(texts))]
    count = min(int(CALIBRATION_SHARE * len(texts)), max(0, len(texts) - LEAST_PROMPTS))
    return shuffled[count:], shuffled[:count]


def _require_usable(folder: Path, texts: Sequence[str]) -> None:
    from genopt.models.pipeline_prompts import prompts_of

    prompts = prompts_of(folder)
    for text in texts:
        problem = prompts.objection(text)
        if problem:
            raise DataError(f"{problem} (it begins {text[:40]!r})")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def profile(payload: dict[str, Any], _ends: float) -> dict[str, Any]:
    """Profiles the original; see `genopt.profiling.images.profile_pipeline`.

    Args:
        payload: `model` (folder), `data` (the prepare stage's file), `threads`, `trace_folder`, `ceilings` (folder of their cache).
    """
    from genopt.profiling.ceiling_cache import CeilingCache
    from genopt.profiling.images import profile_pipeline

    prompt = ImageSet.model_validate_json(Path(payload["data"]).read_text(encoding="utf-8")).prompts[0]
    found = profile_pipeline(
        Path(payload["model"]), prompt=prompt, threads=payload["threads"], progress=_print, trace_folder=Path(payload["trace_folder"]),
        cache=CeilingCache(Path(payload["ceilings"])),
    )  # fmt: skip
    content: dict[str, Any] = found.model_dump(mode="json")
    return content


def _print(message: str) -> None:
    print(message, flush=True)
