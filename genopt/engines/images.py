"""What sessions that make images do; see `genopt.engines.base` for what all sessions have."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Base64Bytes, Field

from genopt.engines.base import Session
from genopt.errors import SpecError
from genopt.plan import Record

MULTIPLE = 8
"""Widths and heights are multiples of it: latents are that many times smaller."""


class Shape(NamedTuple):
    """What requests of one batch have in common; None stands for the session's own."""

    steps: int | None
    width: int | None
    height: int | None
    guidance: float | None


class ImageRequest(Record):
    """One image.

    Attributes:
        prompt: What it shows.
        seed: The same one gives the same image on one machine.
        steps: Denoising steps; None takes what the session was opened with.
        width: Pixels; None takes the pipeline's own, as for the height.
        height: Pixels.
        guidance: Scale of classifier-free guidance; None takes what the session was opened with.
    """

    prompt: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    guidance: float | None = None

    @property
    def shape(self) -> Shape:
        """Requests of the same shape can be made together."""
        return Shape(self.steps, self.width, self.height, self.guidance)


class GeneratedImage(Record):
    """An image.

    Attributes:
        png: The file; empty where it was cancelled.
        started_ns: Monotonic clock when the request entered the engine.
        timestamps_ns: When each denoising step was over.
        finished_ns: When the image was there.
        finish_reason: Whether it was made.
    """

    png: Base64Bytes
    started_ns: int
    timestamps_ns: tuple[int, ...]
    finished_ns: int
    finish_reason: Literal["done", "cancelled"] = "done"

    def pixels(self) -> NDArray[np.uint8]:
        """Height, width, RGB."""
        from PIL import Image

        with Image.open(io.BytesIO(self.png)) as image:
            return np.asarray(image.convert("RGB"))


OnStep = Callable[[int, int, int], bool]
"""Called with (request index, finished steps, steps in all), the last of them still under way on GPUs; returning False cancels that request."""


class MakesImages(Protocol):
    """The part of a session that whatever times it needs."""

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep | None = None) -> list[GeneratedImage]:
        """Makes the images of all requests, which have the same shape, as one batch.

        Raises:
            SpecError: A request cannot be fulfilled by this pipeline, or their shapes differ.
            StageError: The pipeline computed something that is not a number.
            OutOfMemoryError: The batch does not fit.
        """


class ImageSession(MakesImages, Session, Protocol):
    """An opened text-to-image pipeline."""


def require_shape(requests: Sequence[ImageRequest]) -> Shape:
    """The shape of a batch.

    Raises:
        SpecError: Shapes differ, or theirs is none.
    """
    shape = requests[0].shape
    if any(request.shape != shape for request in requests):
        raise SpecError("Images of different sizes, steps or guidance cannot be made as one batch; ask for them one after the other.")
    if shape.steps is not None and shape.steps < 1:
        raise SpecError(f"An image cannot be made in {shape.steps} steps; ask for at least 1.", {"param": "steps"})
    for side in (shape.width, shape.height):
        if side is not None and (side < MULTIPLE or side % MULTIPLE):
            raise SpecError(f"{side} pixels are not a multiple of {MULTIPLE}; ask for a size such as 512x512.", {"param": "size"})
    if shape.guidance is not None and shape.guidance < 0:
        raise SpecError(f"A guidance scale of {shape.guidance:g} is negative; ask for 0 (none) or more.", {"param": "guidance"})
    return shape
