"""How long and on what `diffusers_distill_steps` trains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.plan import Record


class DistillStepsParams(Record):
    """Parameters.

    Attributes:
        steps: Steps that the result takes.
        substeps: Steps of the original for each of them.
        guidance_scale: Guidance of the original that the result learns; None takes the pipeline's default.
        trajectories: The original's ways from noise to image that are trained on.
        updates: Updates of the weights.
        batch: Trajectories of each.
        time_s: Seconds after which training ends although updates are left.
        learning_rate: Peak of AdamW's learning rate.
    """

    steps: Literal[2, 4, 5, 8] = 4
    substeps: int = Field(default=4, ge=1)
    guidance_scale: float | None = Field(default=None, ge=1)
    trajectories: int = Field(default=1024, gt=0)
    updates: int = Field(default=2000, gt=0)
    batch: int = Field(default=16, gt=0)
    time_s: float = Field(default=90.0, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
