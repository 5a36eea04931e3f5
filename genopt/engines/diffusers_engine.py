"""Runs text-to-image pipelines in diffusers: as users run them, or with whatever makes their steps fewer or cheaper."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.attention import require_kernels
from genopt.engines.base import SPARE_THREADS
from genopt.engines.compiler import require_compiler
from genopt.engines.diffusers_options import DiffusersOptions
from genopt.engines.pipeline_options import SCHEDULE, require_scheduler
from genopt.errors import InfeasibleError, SpecError
from genopt.models.capability import capability
from genopt.plan import JsonValue, parse_settings
from genopt.search.space import Tunable

if TYPE_CHECKING:
    from genopt.engines.diffusers_session import DiffusersSession


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
        if found.compile != "none":
            require_compiler()
        if found.graphs and found.compile != "denoiser":
            raise SpecError("Graphs replay the compiled denoiser; set compile to 'denoiser' with them.")
        if found.graphs and capability() is None:
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
