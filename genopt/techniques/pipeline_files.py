"""What techniques share that change one component of a pipeline: load it alone, and copy all the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def load_denoiser(folder: Path) -> tuple[str, Any]:
    """Name and module of a pipeline's denoiser, on the CPU in the checkpoint's precision."""
    import diffusers

    from genopt.models.pipeline_loading import components, denoiser_name, stored_dtype

    parts = components(folder)
    name = denoiser_name(parts)
    made = getattr(diffusers, parts[name])
    return name, made.from_pretrained(folder / name, torch_dtype=stored_dtype(folder), local_files_only=True).eval()


def copy_pipeline(source: Path, destination: Path, *, without: Collection[str] = ()) -> None:
    """Copies a pipeline, and of some components only what is no weight; links to other folders become files."""
    ignored: Callable[[str, list[str]], set[str]] = shutil.ignore_patterns(*WEIGHTS)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return set(ignored(folder, names)) if Path(folder) in {source / name for name in without} else set()

    shutil.copytree(source, destination, ignore=left_out, dirs_exist_ok=True)
    _write_index(destination, json.loads((destination / INDEX).read_text(encoding="utf-8")))


def set_scheduler(folder: Path, scheduler: Any) -> None:
    """Gives a pipeline that was copied another scheduler of diffusers."""
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    _write_index(folder, {**index, "scheduler": ["diffusers", type(scheduler).__name__]})


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
