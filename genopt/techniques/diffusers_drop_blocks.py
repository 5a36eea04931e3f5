"""Leaves out the blocks of a transformer denoiser whose absence changes its predictions least."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext
from genopt.techniques.calibration import calibration_prompts
from genopt.techniques.pipeline_files import copy_pipeline, denoiser_of

if TYPE_CHECKING:
    from genopt.techniques.denoiser_calls import Call

LISTS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
"""Names of a denoiser's lists of blocks, and how its configuration says how many there are."""
BY_PLACE = ("dual_attention_layers",)
"""Entries of a configuration that name blocks by their places."""


class DropBlocksParams(Record):
    """Parameters.

    Attributes:
        count: Blocks to leave out.
        prompts: Calibration prompts on which blocks are judged.
        steps: Denoising steps of each; some pipelines make no image in one.
    """

    count: int = Field(default=1, gt=0)
    prompts: int = Field(default=2, gt=0)
    steps: int = Field(default=4, gt=1)


class DropBlocks:
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_drop_blocks"
    version = 1
    phase = 10
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized", "sparse"})
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()
    needs_calibration = True
    gpu: GpuUse = "used"
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = None

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`; configurations of UNets cannot say which of their blocks are gone."""
        count = parse_settings(DropBlocksParams, params, cls.name).count
        config = json.loads((source / denoiser_of(source) / "config.json").read_text(encoding="utf-8"))
        kind, blocks = config.get("_class_name"), sum(config.get(key) or 0 for key in LISTS.values())
        if not blocks:
            raise InfeasibleError(f"The configuration of {kind} cannot say which of its blocks are gone; leave {cls.name} to transformers.")
        if any(config.get(key) for key in BY_PLACE):
            raise InfeasibleError(f"This {kind} has blocks of several kinds, named by their places; leave {cls.name} out.")
        if count >= blocks:
            raise InfeasibleError(f"The denoiser has {blocks} blocks, so {count} cannot be left out; drop fewer.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        count = parse_settings(DropBlocksParams, params, "diffusers_drop_blocks").count
        return before.with_layers(max(1.0, before.layers - count)).risked(0.3**count)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        from genopt.models.pipeline_loading import load_pipeline
        from genopt.techniques.denoiser_calls import record

        chosen = parse_settings(DropBlocksParams, params, cls.name)
        prompts = calibration_prompts(context.calibration, chosen.prompts)
        name = denoiser_of(source)
        progress("loading the pipeline")
        pipeline = load_pipeline(source)
        denoiser = pipeline.components[name]
        calls = record(pipeline, denoiser, prompts, steps=chosen.steps, seed=context.seed)
        for _ in range(chosen.count):
            drop_least(denoiser, calls, progress)
        copy_pipeline(source, destination, without={name})
        denoiser.save_pretrained(destination / name)


def drop_least(denoiser: Any, calls: list[Call], progress: Progress) -> None:
    """Leaves out, in place, the block without which answers differ least; the configuration says what is left.

    The last block of each list stays: that of some families ends the way of the text.

    Args:
        denoiser: A transformer.
        calls: What it was asked, and what it answered when it was whole.
        progress: Told which block it is.

    Raises:
        InfeasibleError: All blocks are last ones.
    """
    from torch import nn

    from genopt.techniques.denoiser_calls import difference

    lists = {name: getattr(denoiser, name) for name, key in LISTS.items() if denoiser.config.get(key)}
    found: list[tuple[float, str, int]] = []
    for name, blocks in lists.items():
        for place in range(len(blocks) - 1):
            setattr(denoiser, name, nn.ModuleList([*blocks[:place], *blocks[place + 1 :]]))
            found.append((difference(denoiser, calls), name, place))
        setattr(denoiser, name, blocks)
    if not found:
        raise InfeasibleError("The denoiser has no block left that could be left out; drop fewer.")
    apart, name, place = min(found)
    progress(f"leaving out block {place} of {name}, without which answers differ by {apart:.2%}")
    setattr(denoiser, name, nn.ModuleList([*lists[name][:place], *lists[name][place + 1 :]]))
    denoiser.register_to_config(**{LISTS[name]: len(lists[name]) - 1})
