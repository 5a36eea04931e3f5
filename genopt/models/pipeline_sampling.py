"""How a pipeline wants to be sampled where its class says otherwise: a denoiser that was trained for few steps brings that along."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genopt.errors import ModelError
from genopt.plan import Record

FILE = "genopt_sampling.json"
"""Beside a pipeline's model_index.json."""


class Sampling(Record):
    """What requests take that name nothing else; None leaves it to the pipeline's class.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance; at 1 there is none, and each step costs half.
    """

    num_inference_steps: int | None = Field(default=None, gt=0)
    guidance_scale: float | None = Field(default=None, ge=0)


def write(folder: Path, sampling: Sampling) -> None:
    """Writes it into a pipeline's folder."""
    (folder / FILE).write_text(sampling.model_dump_json(), encoding="utf-8")


def read(folder: Path) -> Sampling:
    """What a pipeline's folder says about it; nothing where it does not.

    Raises:
        ModelError: The file cannot be used.
    """
    if not (folder / FILE).is_file():
        return Sampling()
    try:
        return Sampling.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{folder / FILE} cannot be read; build the artifact again.") from None
