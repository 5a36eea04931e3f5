"""What techniques share that change components of a pipeline: load them alone, tell their inner layers, and copy all the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
BLOCKS = ("blocks", "layers", "layer", "block", "mid_block")
"""How the names of repeated parts end, in the model definitions of diffusers and of text encoders."""


def denoiser_of(folder: Path) -> str:
    """Name of the component that every step runs."""
    from genopt.models.pipeline_loading import components, denoiser_name

    return denoiser_name(components(folder))


def text_encoders_of(folder: Path) -> list[str]:
    """Names of the components that read prompts."""
    from genopt.models.pipeline_loading import components

    return [name for name in components(folder) if name.startswith("text_encoder")]


def load_component(folder: Path, name: str, dtype: str | None = None) -> Any:
    """A component on the CPU.

    Args:
        folder: The pipeline.
        name: The component.
        dtype: Name of a dtype, or None for the checkpoint's.

    Raises:
        ModelError: It is of no library that makes components.
    """
    import torch

    from genopt.models.pipeline import component_class
    from genopt.models.pipeline_loading import stored_dtype

    library, made = json.loads((folder / INDEX).read_text(encoding="utf-8"))[name]
    wanted = stored_dtype(folder) if dtype is None else getattr(torch, dtype)
    given = {"torch_dtype" if library == "diffusers" else "dtype": wanted}
    return component_class(library, made).from_pretrained(folder / name, local_files_only=True, use_safetensors=True, **given).eval()


def load_denoiser(folder: Path) -> tuple[str, Any]:
    """Name and module of a pipeline's denoiser, on the CPU in the checkpoint's precision."""
    name = denoiser_of(folder)
    return name, load_component(folder, name)


def is_inner(path: str) -> bool:
    """Whether a layer lies within the repeated blocks, and is no part of what tells them the time."""
    return any(part.endswith(BLOCKS) for part in path.split(".")[:-1]) and "time_emb" not in path


def copy_pipeline(source: Path, destination: Path, *, without: Collection[str] = ()) -> None:
    """Copies a pipeline, and of some components only what is no weight; links to other folders become files."""
    ignored: Callable[[str, list[str]], set[str]] = shutil.ignore_patterns(*WEIGHTS)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return set(ignored(folder, names)) if Path(folder) in {source / name for name in without} else set()

    shutil.copytree(source, destination, ignore=left_out, dirs_exist_ok=True)
    _write(destination / INDEX, json.loads((destination / INDEX).read_text(encoding="utf-8")))


def save_component(component: Any, folder: Path) -> None:
    """Writes a changed component, without the path that it was loaded from: the same work has the same bytes wherever it is done."""
    component.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _write(folder / "config.json", {name: value for name, value in config.items() if name != "_name_or_path"})


def set_scheduler(folder: Path, scheduler: Any) -> None:
    """Gives a pipeline that was copied another scheduler of diffusers."""
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    _write(folder / INDEX, {**index, "scheduler": ["diffusers", type(scheduler).__name__]})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
