"""Text-to-image pipelines in diffusers: one way to load them, and to tell their parts."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genopt.errors import ModelError
from genopt.models import quantized
from genopt.models.trust import trusted

DENOISERS = ("unet", "transformer")
"""Names of the component that every step runs."""
LONGEST_PROMPT = 1_000_000
"""Tokenizers without a limit give a larger number than this."""


def denoiser_name(names: Iterable[str]) -> str:
    """Which of a pipeline's components denoises.

    Raises:
        ModelError: None of them is known to.
    """
    found = next((name for name in DENOISERS if name in set(names)), None)
    if found is None:
        raise ModelError(f"The pipeline has neither of {', '.join(DENOISERS)}; give a pipeline whose denoiser has one of these names.")
    return found


def components(folder: Path) -> dict[str, str]:
    """Class name by component, of those that have one."""
    index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2 and entry[1]}


def class_name(folder: Path) -> str:
    """Name of the pipeline's class in diffusers."""
    found: str = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    return found


def load_pipeline(folder: Path, dtype: str | None = None) -> Any:
    """Loads a pipeline for inference, on the GPU where there is one; components that a transform quantized stay so.

    Args:
        folder: Folder that `save_pretrained` wrote.
        dtype: Name of a dtype, or None for the checkpoint's.

    Raises:
        ModelError: A component is missing or cannot be loaded.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    parts = components(folder)
    missing = sorted(name for name in parts if not (folder / name).is_dir())
    if missing:
        raise ModelError(f"The pipeline in {folder} lacks {', '.join(missing)}; fetch all of its component folders again.")
    wanted = stored_dtype(folder) if dtype is None else getattr(torch, dtype)
    try:
        given = {name: quantized.load(folder / name, wanted) for name in parts if quantized.is_quantized(folder / name)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries deprecate among themselves
            pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=wanted, local_files_only=True, trust_remote_code=trusted(), **given)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"The pipeline in {folder} cannot be loaded ({cause}); fetch all of its component folders again.") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def stored_dtype(folder: Path) -> torch.dtype:
    """What most of the denoiser's floating-point parameters are stored in."""
    from safetensors import safe_open

    counts: dict[torch.dtype, int] = {}
    for path in sorted((folder / denoiser_name(components(folder))).glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                tensor = weights.get_slice(name)
                dtype = _DTYPES.get(tensor.get_dtype())
                if dtype is not None:
                    counts[dtype] = counts.get(dtype, 0) + int(torch.Size(tensor.get_shape()).numel())
    found = max(counts, key=lambda dtype: counts[dtype], default=torch.float32)
    # Kernels of half precision are missing or slow on CPUs; checkpoints come in it to be small.
    return torch.float32 if found == torch.float16 and not torch.cuda.is_available() else found


_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def takes(pipeline: Any, parameter: str) -> bool:
    """Whether a call of the pipeline knows a parameter."""
    return parameter in inspect.signature(type(pipeline).__call__).parameters


def draws_noise(pipeline: Any) -> bool:
    """Whether the noise that an image begins with comes from a method of the pipeline that is told its dtype."""
    draw = inspect.getattr_static(type(pipeline), "prepare_latents", None)
    return draw is not None and "dtype" in inspect.signature(draw).parameters


def default(pipeline: Any, parameter: str) -> Any:
    """What a call of the pipeline takes for a parameter that it is not given."""
    found = inspect.signature(type(pipeline).__call__).parameters.get(parameter)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


class Tokenizers:
    """A pipeline's tokenizers: how long a prompt may be.

    Args:
        tokenizers: Those of the components.
    """

    def __init__(self, tokenizers: Sequence[Any]) -> None:
        limits = [one.model_max_length for one in tokenizers]
        known = bool(limits) and max(limits) < LONGEST_PROMPT
        self._limit: int = max(limits) if known else 0
        # The most patient one counts: pipelines with several give the others the beginning.
        self._patient = next((one for one in tokenizers if one.model_max_length == self._limit), None) if known else None

    @classmethod
    def of_pipeline(cls, pipeline: Any) -> Tokenizers:
        """Those of an open pipeline."""
        return cls([part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part is not None])

    @classmethod
    def of_folder(cls, folder: Path) -> Tokenizers:
        """Those of a pipeline's folder."""
        from transformers import AutoTokenizer

        names = [name for name in components(folder) if name.startswith("tokenizer")]
        try:
            return cls([AutoTokenizer.from_pretrained(folder / name, local_files_only=True) for name in names])
        except (OSError, ValueError) as error:
            cause = str(error).splitlines()[0].rstrip(".")
            raise ModelError(f"A tokenizer of {folder} cannot be loaded ({cause}); fetch the whole pipeline again.") from None

    def objection(self, prompt: str) -> str:
        """Why a prompt is too long, in a sentence; an empty text where it is not."""
        if self._patient is None:
            return ""
        tokens = len(self._patient(prompt, truncation=False, verbose=False).input_ids)
        return f"The prompt has {tokens} tokens and this pipeline reads {self._limit}; shorten it." if tokens > self._limit else ""


def matrices(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a denoiser by name."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
