"""Reads what a model folder holds from its JSON files and safetensors headers; loads no weights and no model library."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from genopt.errors import ModelError
from genopt.models.headers import TAKES, no_weights, read_json, weights
from genopt.models.pipeline import Component, Denoiser, inspect_pipeline
from genopt.plan import Record

ASSUMED_CONTEXT = 2048
"""Tokens assumed for a language model that states no limit, such as a recurrent one."""

CACHELESS = frozenset({
    "FalconMambaForCausalLM", "FlaubertWithLMHeadModel", "Mamba2ForCausalLM", "MambaForCausalLM", "OpenAIGPTLMHeadModel", "RwkvForCausalLM",
    "XLMWithLMHeadModel", "XLNetLMHeadModel", "xLSTMForCausalLM",
})  # fmt: skip
"""Classes of transformers that take no `past_key_values`: some keep a state of their own, which engines would lose after the first token."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")


class Inspection(Record):
    """What a model folder holds; see `genopt.models.resolve.ResolvedModel` for the fields."""

    library: Literal["transformers", "diffusers"]
    modality: Literal["text", "image"]
    task: Literal["text-generation", "text-to-image"]
    architecture: str
    parameters: int
    bytes: int
    dtype: str
    max_context: int
    note: str = ""
    components: tuple[Component, ...] = ()
    denoiser: Denoiser | None = None


def inspect(folder: Path, *, trust_remote_code: bool = False) -> Inspection:
    """Inspects a model folder and proves that a run can use it.

    Args:
        folder: Folder in the layout of `save_pretrained`.
        trust_remote_code: Accept a model that brings its own Python code.

    Raises:
        ModelError: Something is missing, corrupt or not generative.
    """
    if (folder / "model_index.json").is_file():
        return _inspect_pipeline(folder, trust_remote_code)
    if (folder / "config.json").is_file():
        return _inspect_language_model(folder, trust_remote_code)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds an adapter without its model; merge it (`merge_and_unload` of peft) and give the merged folder.")
    raise ModelError(f"{folder} has no config.json or model_index.json; give the folder that `save_pretrained` wrote.")


def _inspect_language_model(folder: Path, trust_remote_code: bool) -> Inspection:
    config = read_json(folder / "config.json")
    architectures = config.get("architectures") or ["a model without `architectures` in config.json"]
    architecture = str(architectures[0])
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(f"{folder} is {architecture}; {TAKES}, so give one of those.")
    if architecture in CACHELESS:
        raise ModelError(f"{folder} is {architecture}, which keeps no keys and values to continue a text from; give a transformer with attention.")
    if "auto_map" in config and not trust_remote_code and not _native(str(config.get("model_type", ""))):
        raise ModelError(f"{folder} brings Python code of its own; read that code, then add --trust-remote-code if you trust it.")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save the model's fast tokenizer beside the weights with `save_pretrained`.")
    read_json(folder / "tokenizer.json")
    elements, size = weights(folder, ("model.safetensors",))
    if not elements:
        raise no_weights(folder, folder)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else None
    return Inspection(
        library="transformers", modality="text", task="text-generation", architecture=architecture,
        parameters=elements.total(), bytes=size, dtype=elements.most_common(1)[0][0], max_context=context_of(config),
        note=f"The weights are already quantized with {method}; quality is judged against them as they are." if method else "",
    )  # fmt: skip


def _inspect_pipeline(folder: Path, trust_remote_code: bool) -> Inspection:
    found = inspect_pipeline(folder, trust_remote_code=trust_remote_code)
    return Inspection(
        library="diffusers", modality="image", task="text-to-image", architecture=found.architecture,
        parameters=sum(component.parameters for component in found.components), bytes=sum(component.bytes for component in found.components),
        dtype=found.dtype, max_context=0, components=found.components, denoiser=found.denoiser,
        note="" if found.denoiser else f"What denoises in {found.architecture} is not known, so only options that fit every pipeline are tried.",
    )  # fmt: skip


def _native(model_type: str) -> bool:
    """Whether the installed transformers defines this type of model itself, so that code in the folder is not needed."""
    library = importlib.util.find_spec("transformers")  # finds the folder without importing it
    if not model_type.replace("-", "_").isidentifier() or library is None or library.origin is None:
        return False
    return (Path(library.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def context_of(config: Mapping[str, Any]) -> int:
    """Tokens of the longest sequence that a language model takes.

    Args:
        config: What its config.json says.
    """
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(source.get(key), int) and source[key] > 0:
                return int(source[key])
    return ASSUMED_CONTEXT
