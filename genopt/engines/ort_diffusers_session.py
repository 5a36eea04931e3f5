"""An exported text-to-image pipeline opened with optimum-onnx: diffusers' own call, with ONNX Runtime behind each part."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genopt.engines.base import Memory
from genopt.engines.pipeline_options import PipelineOptions
from genopt.engines.pipeline_session import PipelineSession
from genopt.engines.process_memory import process_memory
from genopt.errors import ModelError
from genopt.models.pipeline_prompts import prompts_of


class OrtDiffusersSession(PipelineSession):
    """See `genopt.engines.images.ImageSession`.

    Args:
        folder: Artifact with the trait `onnx_diffusers`.
        options: Runtime options.

    Raises:
        InfeasibleError: The pipeline cannot be run with these options.
        ModelError: The pipeline cannot be loaded.
    """

    def __init__(self, folder: Path, options: PipelineOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)  # schedulers and the images' last steps
        super().__init__(folder, _load(folder, options.threads), prompts_of(folder), options)

    @contextmanager
    def _prepared(self, count: int) -> Iterator[None]:
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # images of pixels that are no numbers, which are looked at afterwards
            try:
                yield
            except (failures.RuntimeException, failures.Fail) as error:  # neither is a RuntimeError
                raise RuntimeError(str(error)) from None

    def _stepped(self, timestep: Any) -> None:
        """Nothing here asks for it."""

    def memory(self) -> Memory:
        """See `Session.memory`."""
        return process_memory()

    def close(self) -> None:
        """See `Session.close`."""
        del self._pipeline


def _load(folder: Path, threads: int | None) -> Any:
    import onnxruntime
    from optimum.onnxruntime import ORTDiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise ModelError(f"There is no exported pipeline in {folder}; export one with the technique diffusers_onnx.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries deprecate among themselves
            # Without bindings: with them a part's result takes the place of its input, which the schedulers still need.
            pipeline = ORTDiffusionPipeline.from_pretrained(
                folder, export=False, session_options=settings, provider="CPUExecutionProvider", use_io_binding=False, local_files_only=True
            )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"The exported pipeline in {folder} cannot be loaded ({cause}); export it again.") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
