"""Diffusion pipelines as diffusers saves them: their components, and which of these denoises."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from genopt.errors import ModelError
from genopt.models.headers import TAKES, WEIGHTS, has_pickles, no_weights, read_json, weights
from genopt.plan import Record

Denoiser = Literal["unet", "transformer"]

DENOISERS: Mapping[str, Denoiser] = {
    "UNet2DConditionModel": "unet",  # Stable Diffusion 1 and 2, SDXL, and what was distilled from them
    "PixArtTransformer2DModel": "transformer",
    "Transformer2DModel": "transformer",  # DiT and PixArt, as they were saved first
    "DiTTransformer2DModel": "transformer",
    "SD3Transformer2DModel": "transformer",
    "FluxTransformer2DModel": "transformer",
}
"""The kind of denoiser by its class in diffusers; those whose blocks are known."""

OF_CLASSES = "DiTPipeline"
"""The pipeline that makes images of classes; it is asked for one by its name or number."""

LIBRARIES = ("diffusers", "transformers")
"""What components with weights are made of."""

_COMPONENT_WEIGHTS = {"diffusers": ("diffusion_pytorch_model.safetensors",), "transformers": ("model.safetensors",)}
"""What each library loads; others, which stand for a pipeline's own classes, are made with one of these."""
_NOT_TEXT_TO_IMAGE = ("Img2Img", "Inpaint", "Upscale", "Video", "Audio", "Edit", "Depth2Img", "Super")


class Component(Record):
    """A part of a pipeline.

    Attributes:
        name: Its folder.
        architecture: Class name.
        library: What loads it.
        dtype: The dtype that most parameters have, or an empty text for a part without weights.
        parameters: Elements of all stored tensors.
        bytes: Size of the weight files.
    """

    name: str
    architecture: str
    library: str
    dtype: str = ""
    parameters: int = 0
    bytes: int = 0


class Pipeline(Record):
    """What a pipeline's folder holds.

    Attributes:
        architecture: Class name.
        components: In the order of model_index.json.
        dtype: The dtype that most parameters of all components have.
        denoiser: Kind of the component that denoises; None where its class is unknown.
    """

    architecture: str
    components: tuple[Component, ...]
    dtype: str
    denoiser: Denoiser | None


def inspect_pipeline(folder: Path, *, trust_remote_code: bool) -> Pipeline:
    """Reads a pipeline's folder and proves that its components are there and whole.

    Args:
        folder: Folder with a model_index.json.
        trust_remote_code: Accept a pipeline that brings its own Python code.

    Raises:
        ModelError: Something is missing, corrupt, pickled, or makes no images from text.
    """
    index = read_json(folder / "model_index.json")
    classes = dict(_classes(index))
    named = index.get("_class_name")
    architecture = str(named[-1] if isinstance(named, list) and named else named)
    asked_in_words = any(name.startswith("text_encoder") for name in classes) or architecture == OF_CLASSES
    if not asked_in_words or any(word in architecture for word in _NOT_TEXT_TO_IMAGE):
        raise ModelError(f"{folder} is {architecture}; {TAKES}, so give one of those.")
    own_code = isinstance(named, list) or any((folder / name / f"{library}.py").is_file() for name, (library, _) in classes.items())
    if own_code and not trust_remote_code:
        raise ModelError(f"{folder} brings Python code of its own; read that code, then add --trust-remote-code if you trust it.")
    elements: Counter[str] = Counter()
    components = []
    for name, (library, class_name) in classes.items():
        found, size = _component_weights(folder, name, library)
        dtype = found.most_common(1)[0][0] if found else ""
        components.append(Component(name=name, architecture=class_name, library=library, dtype=dtype, parameters=found.total(), bytes=size))
        elements.update(found)
    if not elements:
        raise no_weights(folder, folder)
    return Pipeline(
        architecture=architecture, components=tuple(components), dtype=elements.most_common(1)[0][0], denoiser=_denoiser(tuple(components))
    )


def component_class(library: str, name: str) -> Any:
    """The class of a component, as a file of the pipeline names it: what a model's files say must not choose which modules are run.

    Args:
        library: Its module.
        name: Its name there.

    Raises:
        ModelError: It is of another library than those that make components, or not there.
    """
    if library not in LIBRARIES:
        raise ModelError(f"{library}.{name} is no component of {' or '.join(LIBRARIES)}; fetch the pipeline again, or build the artifact again.")
    found = getattr(importlib.import_module(library), name, None)
    if found is None:
        raise ModelError(f"There is no {name} in the installed {library}; install the version that made this pipeline.")
    return found


def _classes(index: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Library and class by component; [null, null] stands for one that was left out, such as a safety checker."""
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
            yield name, (entry[0], entry[1])


def _component_weights(folder: Path, name: str, library: str) -> tuple[Counter[str], int]:
    """Elements by dtype and bytes of a component; what has a config.json is a model and must have weights."""
    component = folder / name
    if not component.is_dir():
        raise ModelError(f"{folder} names the component {name!r} but has no such folder; fetch the whole pipeline again.")
    found, size = weights(component, _COMPONENT_WEIGHTS.get(library, WEIGHTS))
    if found:
        return found, size
    variants = sorted(path.name for path in component.glob("*.*.safetensors"))
    if variants:
        raise ModelError(f"{component} has a variant of its weights only ({variants[0]}); load it with diffusers' `variant` and save it again.")
    if (component / "config.json").is_file() or has_pickles(component):
        raise no_weights(component.parent, component)
    return found, size


def _denoiser(components: tuple[Component, ...]) -> Denoiser | None:
    kinds = [DENOISERS[component.architecture] for component in components if component.architecture in DENOISERS]
    return kinds[0] if len(kinds) == 1 else None
