"""Runs exported text-to-image pipelines in ONNX Runtime on CPUs, in an environment of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from genopt.engines.base import SPARE_THREADS
from genopt.engines.pipeline_options import SCHEDULE, PipelineOptions, require_scheduler
from genopt.plan import JsonValue, parse_settings

if TYPE_CHECKING:
    from genopt.engines.ort_diffusers_session import OrtDiffusersSession


class OrtDiffusersEngine:
    """See `genopt.engines.base.Engine`."""

    name = "ort_diffusers"
    modality = "image"
    accepts = frozenset({"onnx_diffusers"})
    tunables = (*SCHEDULE, SPARE_THREADS)
    environment: str | None = "onnx"
    layer_overhead_s = 1e-4

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        require_scheduler(parse_settings(PipelineOptions, options, "ort_diffusers"), "ort_diffusers")

    @staticmethod
    def prepare() -> None:
        """See `Engine.prepare`."""
        importlib.import_module("genopt.engines.ort_diffusers_session")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> OrtDiffusersSession:
        """See `Engine.open`."""
        from genopt.engines.ort_diffusers_session import OrtDiffusersSession

        session = OrtDiffusersSession(artifact, parse_settings(PipelineOptions, options, "ort_diffusers"))
        session.warm_up()
        return session
