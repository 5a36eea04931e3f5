"""Leaves out the blocks of a transformer, or the layers and the middle of a UNet, whose absence changes a denoiser's predictions least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_prompts
from genopt.techniques.denoiser_blocks import Removal, leave_out, left_out, most_removals, objection, removals
from genopt.techniques.pipeline_files import copy_pipeline, denoiser_of

if TYPE_CHECKING:
    from genopt.techniques.denoiser_calls import Call

CONFIG = "config.json"


class DropBlocksParams(Record):
    """Parameters.

    Attributes:
        count: Parts to leave out, each of them the one whose absence then changes predictions least.
        prompts: Calibration prompts on which parts are judged.
        steps: Denoising steps of each; some pipelines make no image in one.
    """

    count: int = Field(default=1, gt=0)
    prompts: int = Field(default=2, gt=0)
    steps: int = Field(default=4, gt=1)


class DropBlocks(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_drop_blocks"
    version = 3
    phase = 10
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized", "sparse"})
    needs_calibration = True
    gpu = "used"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        count = parse_settings(DropBlocksParams, params, cls.name).count
        config = _config(source / denoiser_of(source))
        if reason := objection(config):
            raise InfeasibleError(f"{reason}; leave {cls.name} out.")
        most = most_removals(config)
        if count > most:
            raise InfeasibleError(f"This denoiser can be without {most} of its parts at most, not {count}; drop fewer, or leave {cls.name} out.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        count = parse_settings(DropBlocksParams, params, "diffusers_drop_blocks").count
        return before.with_layers(max(1.0, before.layers - count)).risked(0.3**count)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models.pipeline_loading import load_pipeline, stored_dtype
        from genopt.techniques.denoiser_calls import record

        chosen = parse_settings(DropBlocksParams, params, cls.name)
        prompts = calibration_prompts(context.calibration, chosen.prompts)
        name = denoiser_of(source)
        progress("loading the pipeline")
        pipeline = load_pipeline(source)
        denoiser = pipeline.components[name]
        calls = record(pipeline, denoiser, prompts, steps=chosen.steps, seed=context.seed)
        config = _config(source / name)
        for _ in range(chosen.count):
            removal = least_useful(denoiser, removals(config), calls, progress)
            leave_out(denoiser, removal)
            config |= removal.config
        copy_pipeline(source, destination, without={name})
        if denoiser.dtype != stored_dtype(source):  # without a GPU it computes in a wider one
            denoiser.to(stored_dtype(source))
        denoiser.save_pretrained(destination / name)
        # What diffusers wrote there also holds the source's path, and the number of blocks before.
        (destination / name / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def least_useful(denoiser: Any, found: list[Removal], calls: list[Call], progress: Progress) -> Removal:
    """The part without which answers differ least.

    Args:
        denoiser: Unchanged afterwards.
        found: Parts that can go.
        calls: What it was asked, and what it answered when it was whole.
        progress: Told which part it is.
    """
    from genopt.techniques.denoiser_calls import difference

    costs = []
    for removal in found:
        with left_out(denoiser, removal):
            costs.append(difference(denoiser, calls))
    place = costs.index(min(costs))
    progress(f"leaving out {found[place].name}, without which answers differ by {costs[place]:.2%}")
    return found[place]


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return found
