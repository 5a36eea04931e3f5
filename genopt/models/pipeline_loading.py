"""Text-to-image pipelines in diffusers: one way to load them, and to tell their parts."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genopt.errors import ModelError
from genopt.models import quantized
from genopt.models.headers import weight_files
from genopt.models.pipeline import OF_CLASSES
from genopt.models.trust import trusted

DENOISERS = ("unet", "transformer")
"""Names of the component that every step runs."""


def denoiser_name(names: Iterable[str]) -> str:
    """Which of a pipeline's components denoises.

    Raises:
        ModelError: None of them is known to.
    """
    found = next((name for name in DENOISERS if name in set(names)), None)
    if found is None:
        raise ModelError(f"The pipeline has neither of {', '.join(DENOISERS)}; give a pipeline whose denoiser has one of these names.")
    return found


def index(folder: Path) -> dict[str, Any]:
    """What diffusers wrote of the pipeline as a whole."""
    found: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return found


def components(folder: Path) -> dict[str, str]:
    """Class name by component, of those that have one."""
    return {name: entry[1] for name, entry in index(folder).items() if isinstance(entry, list) and len(entry) == 2 and entry[1]}


def class_name(folder: Path) -> str:
    """Name of the pipeline's class in diffusers."""
    found: str = index(folder)["_class_name"]
    return found


def load_pipeline(folder: Path, dtype: str | None = None) -> Any:
    """Loads a pipeline for inference, on the GPU where there is one; components that a transform quantized stay so.

    Args:
        folder: Folder that `save_pretrained` wrote.
        dtype: Name of a dtype, or None for what `compute_dtype` says.

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
    wanted = compute_dtype(folder) if dtype is None else getattr(torch, dtype)
    kind: Any = DiffusionPipeline
    given: dict[str, Any] = {}
    if class_name(folder) == OF_CLASSES:
        from genopt.models.class_pipeline import ClassPipeline

        kind, given = ClassPipeline, {"id2label": {int(number): name for number, name in class_names(folder).items()}}
    try:
        given |= {name: quantized.load(folder / name, wanted) for name in parts if quantized.is_quantized(folder / name)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what libraries deprecate among themselves
            pipeline = kind.from_pretrained(
                folder, torch_dtype=wanted, local_files_only=True, use_safetensors=True, trust_remote_code=trusted(), **given
            )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"The pipeline in {folder} cannot be loaded ({cause}); fetch all of its component folders again.") from None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def class_names(folder: Path) -> dict[str, str]:
    """Names of the classes that a pipeline of classes makes, by number, each with commas between its names.

    DiT's own model_index.json has them; `save_pretrained` leaves them out, and then a class is called by its number.
    """
    names = index(folder).get("id2label")
    if isinstance(names, dict):
        return names
    config = json.loads((folder / denoiser_name(components(folder)) / "config.json").read_text(encoding="utf-8"))
    return {str(number): str(number) for number in range(config["num_embeds_ada_norm"])}


def stored_dtype(folder: Path) -> torch.dtype:
    """What most of the denoiser's floating-point parameters are stored in."""
    from safetensors import safe_open

    counts: dict[torch.dtype, int] = {}
    for path in weight_files(folder / denoiser_name(components(folder))):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                tensor = weights.get_slice(name)
                dtype = _DTYPES.get(tensor.get_dtype())
                if dtype is not None:
                    counts[dtype] = counts.get(dtype, 0) + int(torch.Size(tensor.get_shape()).numel())
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def compute_dtype(folder: Path) -> torch.dtype:
    """What a pipeline is to compute in here: what it is stored in, except for float16 where there is no GPU.

    Kernels of half precision are missing or slow on CPUs; checkpoints come in it to be small, and so does what is made from them.
    """
    found = stored_dtype(folder)
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


def matrices(denoiser: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a denoiser by name."""
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)}
