"""Components of pipelines whose matrices torchao has quantized, as safetensors.

diffusers' own way to write them needs classes that the torchao of this environment no longer has; torchao's way to lay its
tensors out as plain ones is used directly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genopt.errors import ModelError
from genopt.models.checkpoint import sort_metadata
from genopt.models.pipeline import component_class

FILE = "genopt_torchao.safetensors"
LIBRARY, SHARED = "library", "shared"
"""Metadata: what a file holds, and names of tensors that are others of it."""


def is_quantized(folder: Path) -> bool:
    """Whether a component's folder was written by `save`."""
    return (folder / FILE).is_file()


def save(component: nn.Module, folder: Path) -> None:
    """Writes a quantized component beside its configuration.

    Args:
        component: A model of diffusers or transformers with tensors of torchao.
        folder: An existing folder; weights in it are not removed.
    """
    from safetensors.torch import save_file
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    state = component.state_dict()
    shared = _shared(state)
    # torchao itself finds no plain tensors again that belong to the component and not to a part of it.
    rounded = {name: tensor for name, tensor in state.items() if type(tensor) is not torch.Tensor}
    plain = {name: tensor for name, tensor in state.items() if name not in shared and name not in rounded}
    flat, metadata = flatten_tensor_state_dict(rounded)
    library = type(component).__module__.partition(".")[0]
    tensors = {name: tensor.contiguous() for name, tensor in {**flat, **plain}.items()}
    save_file(tensors, folder / FILE, metadata={**metadata, LIBRARY: json.dumps([library, type(component).__name__]), SHARED: json.dumps(shared)})
    sort_metadata(folder / FILE)


def load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Opens what `save` wrote, on the CPU.

    Args:
        folder: The component's folder.
        dtype: Of what is not quantized.

    Raises:
        ModelError: It was written by something else, or names a class of another library.
    """
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / FILE, framework="pt") as stored:
        metadata: dict[str, Any] = dict(stored.metadata() or {})
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - it is no mapping
    if LIBRARY not in metadata:
        raise ModelError(f"{folder / FILE} does not say which class it holds; build the artifact again.")
    library, class_name = json.loads(metadata.pop(LIBRARY))
    kind = component_class(library, class_name)
    shared: dict[str, str] = json.loads(metadata.pop(SHARED, "{}"))
    state, plain = unflatten_tensor_state_dict(tensors, metadata)
    state |= plain
    state |= {name: state[other] for name, other in shared.items()}
    component = _made(library, kind, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    component.to(dtype).load_state_dict(state, strict=True, assign=True)
    if any(tensor.dtype == torch.float16 for tensor in plain.values()):  # formats that have one precision alone lie in bfloat16
        component.to(dtype)
    component.eval()
    return component


def _shared(state: Mapping[str, Any]) -> dict[str, str]:
    """By name of a plain tensor that has the memory of one before it: the name of that one."""
    first: dict[tuple[int, torch.Size], str] = {}
    found: dict[str, str] = {}
    for name, tensor in state.items():
        if type(tensor) is torch.Tensor and tensor.numel():
            other = first.setdefault((tensor.data_ptr(), tensor.shape), name)
            if other != name:
                found[name] = other
    return found


def _made(library: str, kind: Any, config: dict[str, Any]) -> nn.Module:
    """A component with weights that mean nothing: of diffusers, or of transformers, which has a class for the configuration too."""
    made: nn.Module = kind.from_config(config) if library == "diffusers" else kind(kind.config_class.from_dict(config))
    return made
