"""Turns what the user calls a model into a local folder that is proven usable."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from genopt.errors import ModelError
from genopt.models import gguf, hub
from genopt.models.builtin import BUILT_IN
from genopt.models.inspect import inspect
from genopt.models.pipeline import Component, Denoiser
from genopt.plan import Record
from genopt.store.artifacts import folder_digest
from genopt.store.files import read_error


class ResolvedModel(Record):
    """A model on this machine.

    Attributes:
        id: What the user gave.
        path: Folder with Hugging Face weights, ready to load.
        library: What loads it.
        modality: What it makes.
        task: Catalogue name of its task.
        architecture: Class name from config.json or model_index.json.
        revision: Commit of the hub, or None for local models.
        digest: Digest over the folder's visible files.
        parameters: Elements of all stored tensors; tied tensors are stored, and count, once.
        bytes: Size of the weight files.
        dtype: The dtype that most parameters have.
        max_context: Tokens of the longest sequence; 0 for images.
        note: What reports must say about the weights, or an empty text.
        components: The parts of a pipeline; none for language models.
        denoiser: What kind of network denoises in a pipeline; None for language models, and for pipelines of which nothing is
            known, so that only options that every pipeline has fit them.
    """

    id: str
    path: str
    library: Literal["transformers", "diffusers"]
    modality: Literal["text", "image"]
    task: Literal["text-generation", "text-to-image"]
    architecture: str
    revision: str | None
    digest: str
    parameters: int
    bytes: int
    dtype: str
    max_context: int
    note: str
    components: tuple[Component, ...] = ()
    denoiser: Denoiser | None = None


def resolve(model: str, *, cache: Path, progress: Callable[[str], None], trust_remote_code: bool = False) -> ResolvedModel:
    """Finds, fetches or converts a model, and proves from its headers that a run can use it.

    Args:
        model: Built-in name, folder, `.gguf` file or Hugging Face id; the first that fits is taken.
        cache: Folder for converted models. What the hub serves goes to the hub's own cache.
        progress: Told what happens.
        trust_remote_code: Accept a model that brings its own Python code.

    Raises:
        ModelError: It cannot be found, read or optimized.
        StorageError: The cache cannot be written.
    """
    path = Path(os.path.expanduser(model))  # leaves the name of an unknown user alone, where Path.expanduser raises
    note, revision = "", None
    if model in BUILT_IN:
        folder, note = BUILT_IN[model].folder(cache=cache, progress=progress), BUILT_IN[model].note
    elif os.path.isdir(path):
        folder = path.absolute()
    elif path.suffix == ".gguf":
        folder = gguf.import_gguf(path, cache=cache, progress=progress)
        note = f"These weights were dequantized from {path.name}; if its grid is coarse, formats with few bits quantize them a second time."
    elif os.path.isfile(path):
        raise ModelError(f"{path} is a single file; give the folder that holds it, or a .gguf file.")
    elif hub.is_id(model):
        folder, revision = hub.fetch(model, progress=progress, trust_remote_code=trust_remote_code)
    else:
        known = ", ".join(BUILT_IN)
        raise ModelError(f"There is no folder {model}; give an existing folder, a .gguf file, a Hugging Face id or a built-in name ({known}).")
    found = inspect(folder, trust_remote_code=trust_remote_code)
    progress(f"hashing {folder.name}")
    try:
        digest, _ = folder_digest(folder)
    except OSError as error:
        raise read_error(folder, error) from None
    notes = " ".join(filter(None, (note, found.note)))
    return ResolvedModel(id=model, path=str(folder), revision=revision, digest=digest, **{**found.model_dump(), "note": notes})
