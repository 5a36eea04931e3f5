"""What the engine of diffusers may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from genopt.engines.attention import Kernels
from genopt.engines.pipeline_options import PipelineOptions


class DiffusersOptions(PipelineOptions):
    """Options of the engine, beside those of every one.

    Attributes:
        cache: What is taken over from one step to the next: `first_block` (First-Block Cache: all blocks behind the first, where the
            first one changes little) or `attention` (Pyramid Attention Broadcast: every other attention in the middle of the steps).
        cache_threshold: Relative change of the first block's output below which the others are skipped.
        fuse_projections: Compute queries, keys and values in one product.
        channels_last: Lay images out with their channels last.
        compile: Compile the denoiser, whole or each of its repeated blocks once; for images that are made alone, batches stay eager.
        graphs: Replay the compiled denoiser as a CUDA graph, which waits for no processor between its kernels.
        attention: Kernels of PyTorch that compute the denoiser's attention; None lets it choose.
        dtype: Precision of weights and arithmetic; None takes the checkpoint's.
        vae_slicing: Decode the images of a batch one after the other.
        vae_tiling: Decode large images in tiles.
    """

    cache: Literal["none", "first_block", "attention"] = "none"
    cache_threshold: float = Field(default=0.05, gt=0)
    fuse_projections: bool = False
    channels_last: bool = False
    compile: Literal["none", "regional", "denoiser"] = "none"
    graphs: bool = False
    attention: Kernels | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
