"""Runs text-to-image pipelines in diffusers: as users run them, or with whatever makes their steps fewer or cheaper."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from genopt.engines.attention import Kernels, require_kernels
from genopt.engines.base import SPARE_THREADS
from genopt.engines.pipeline_options import SCHEDULE, PipelineOptions, require_scheduler
from genopt.engines.torch_engine import COMPILERS
from genopt.errors import InfeasibleError, SpecError
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.diffusers_session import DiffusersSession


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


class DiffusersEngine:
    """See `genopt.engines.base.Engine`."""

    name = "diffusers"
    modality = "image"
    accepts = frozenset({"diffusers"})
    tunables = (
        *SCHEDULE,
        Tunable(name="cache", choices=("none", "first_block", "attention"), words=("", "fbcache", "pab")),
        Tunable(name="cache_threshold", choices=(0.05, 0.1, 0.2), words=("", "t10", "t20"), when=(("cache", "first_block"),)),
        Tunable(name="dtype", choices=(None, "bfloat16"), words=("", "bf16")),
        Tunable(name="compile", choices=("none", "denoiser"), words=("", "compiled")),
        Tunable(name="graphs", choices=(False, True), words=("", "graphs"), when=(("compile", "denoiser"),), gpu=True),
        Tunable(name="attention", choices=(None, "cudnn", "flash"), words=("", "cudnn", "flash"), gpu=True),
        Tunable(name="channels_last", choices=(False, True), words=("", "nhwc")),
        SPARE_THREADS,
    )  # fmt: skip
    environment: str | None = None
    layer_overhead_s = 3e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        found = parse_settings(DiffusersOptions, options, "diffusers")
        require_scheduler(found, "diffusers")
        if found.compile != "none" and not any(map(shutil.which, COMPILERS)) and not _has_gpu():
            raise InfeasibleError("torch.compile needs a C++ compiler on CPUs; install one, for example with: apt install g++.")
        if found.graphs and found.compile != "denoiser":
            raise SpecError("Graphs replay the compiled denoiser; set compile to 'denoiser' with them.")
        if found.graphs and not _has_gpu():
            raise InfeasibleError("CUDA graphs need an NVIDIA GPU and there is none here; leave the option out.")
        require_kernels(found.attention)

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("genopt.engines.diffusers_session")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> DiffusersSession:
        """See `Engine.open`."""
        from genopt.engines.diffusers_session import DiffusersSession

        session = DiffusersSession(artifact, parse_settings(DiffusersOptions, options, "diffusers"))
        session.warm_up()
        return session


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
