"""OpenAI's request for images in our own model."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from genopt.engines.images import MULTIPLE
from genopt.serving.exchange import ImageAsk
from genopt.serving.wire import MAX_CHOICES, WHOLE, Unsupported, Wire

LONGEST_PROMPT = 32_000
LARGEST_SIDE = 4096
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class ImagesRequest(Wire):
    """Body of `POST /v1/images/generations`; what concerns other models of OpenAI (`quality`, `style`, `user`) is ignored.

    Attributes:
        size: `WIDTHxHEIGHT`, or `auto` for the pipeline's own.
        seed: Makes images repeatable, which OpenAI has no field for; further images take the next ones.
    """

    model: str | None = None
    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE] | None = None
    size: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62), WHOLE] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    stream: Unsupported = None

    @field_validator("size")
    @classmethod
    def _known_size(cls, value: str | None) -> str | None:
        if value in (None, "auto"):
            return value
        found = _SIZE.fullmatch(str(value))
        if found is None:
            raise ValueError("write the size as WIDTHxHEIGHT in pixels, such as 512x512, or auto")
        if any(side % MULTIPLE or not MULTIPLE <= side <= LARGEST_SIDE for side in map(int, found.groups())):
            raise ValueError(f"width and height have to be multiples of {MULTIPLE} up to {LARGEST_SIDE}, such as 512x512")
        return value

    def asks(self) -> list[ImageAsk]:
        """One for each image; those of a seeded request get consecutive seeds."""
        found = _SIZE.fullmatch(self.size or "")
        width, height = (int(side) for side in found.groups()) if found else (None, None)
        return [
            ImageAsk(prompt=self.prompt, seed=None if self.seed is None else self.seed + index, width=width, height=height)
            for index in range(self.n or 1)
        ]
