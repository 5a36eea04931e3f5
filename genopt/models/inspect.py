"""Reads what a model folder holds from its JSON files and safetensors headers; loads no weights and no model library."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from genopt.errors import ModelError
from genopt.plan import Record

TAKES = "genopt takes causal language models (…ForCausalLM, …LMHeadModel) and text-to-image pipelines of diffusers"
ASSUMED_CONTEXT = 2048
"""Tokens assumed for a language model that states no limit, such as a recurrent one."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_COMPONENT_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "max_sequence_length")
_NOT_TEXT_TO_IMAGE = ("Img2Img", "Inpaint", "Upscale", "Video", "Audio", "Edit", "Depth2Img", "Super")
_MAX_HEADER_BYTES = 100_000_000
_DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8), "F4": ("float4_e2m1fn", 4), "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
    "I16": ("int16", 16), "U16": ("uint16", 16), "F16": ("float16", 16), "BF16": ("bfloat16", 16), "I32": ("int32", 32),
    "U32": ("uint32", 32), "F32": ("float32", 32), "I64": ("int64", 64), "U64": ("uint64", 64), "F64": ("float64", 64),
    "C64": ("complex64", 64),
}  # fmt: skip
"""Name in torch and bits per element, by name in a safetensors header (https://github.com/huggingface/safetensors)."""


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
    if "auto_map" in config and not trust_remote_code and not _native(str(config.get("model_type", ""))):
        raise ModelError(f"{folder} brings Python code of its own; read that code, then add --trust-remote-code if you trust it.")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save the model's fast tokenizer beside the weights with `save_pretrained`.")
    read_json(folder / "tokenizer.json")
    elements, size = _weights(folder, ("model.safetensors",))
    if not elements:
        raise _no_weights(folder, folder)
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method", "an unnamed method") if isinstance(quantization, dict) else None
    return Inspection(
        library="transformers", modality="text", task="text-generation", architecture=architecture,
        parameters=elements.total(), bytes=size, dtype=elements.most_common(1)[0][0], max_context=_context(config),
        note=f"The weights are already quantized with {method}; quality is judged against them as they are." if method else "",
    )  # fmt: skip


def _inspect_pipeline(folder: Path, trust_remote_code: bool) -> Inspection:
    index = read_json(folder / "model_index.json")
    components = {
        name: entry for name, entry in index.items() if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[0]
    }
    named = index.get("_class_name")
    architecture = str(named[-1] if isinstance(named, list) and named else named)
    if not any(name.startswith("text_encoder") for name in components) or any(word in architecture for word in _NOT_TEXT_TO_IMAGE):
        raise ModelError(f"{folder} is {architecture}; {TAKES}, so give one of those.")
    own_code = isinstance(named, list) or any((folder / name / f"{entry[0]}.py").is_file() for name, entry in components.items())
    if own_code and not trust_remote_code:
        raise ModelError(f"{folder} brings Python code of its own; read that code, then add --trust-remote-code if you trust it.")
    elements: Counter[str] = Counter()
    size = 0
    for name in components:
        if not (folder / name).is_dir():
            raise ModelError(f"{folder} names the component {name!r} but has no such folder; fetch the whole pipeline again.")
        found, bytes_found = _weights(folder / name, _COMPONENT_WEIGHTS)
        if not found and any(any((folder / name).glob(pattern)) for pattern in _PICKLES):
            raise _no_weights(folder, folder / name)
        elements.update(found)
        size += bytes_found
    if not elements:
        raise _no_weights(folder, folder)
    return Inspection(
        library="diffusers", modality="image", task="text-to-image", architecture=architecture,
        parameters=elements.total(), bytes=size, dtype=elements.most_common(1)[0][0], max_context=0,
    )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object.

    Raises:
        ModelError: It cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check its permissions or fetch the model again.") from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not valid JSON; fetch the model again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object; fetch the model again.")
    return content


def read_header(path: Path) -> dict[str, tuple[str, int]]:
    """The dtype and number of elements of every tensor of a safetensors file, from its header.

    Raises:
        ModelError: The header is unreadable, or the file is shorter or longer than the header claims.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path} is not a whole safetensors file; fetch it again.")
            header = json.loads(stream.read(length))
        tensors = dict(_tensors(header, size - 8 - length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check its permissions or fetch it again.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ModelError(f"The header of {path} is corrupt; fetch the file again.") from None
    return tensors


def _tensors(header: dict[str, Any], available: int) -> Iterator[tuple[str, tuple[str, int]]]:
    last = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, bits = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        elements = math.prod(entry["shape"])
        if min(begin, elements, available - end) < 0 or (end - begin) * 8 != elements * bits:
            raise ValueError(name)
        last = max(last, end)
        yield name, (dtype, elements)
    if last != available:
        raise ValueError("trailing bytes")


def _weights(folder: Path, names: tuple[str, ...]) -> tuple[Counter[str], int]:
    """Elements by dtype and bytes of the first of these files that the folder holds, whole or in shards; none if it holds none."""
    for name in names:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ModelError(f"{index} names no shards; fetch the model again.")
            if outside := [str(shard) for shard in shards.values() if Path(str(shard)).is_absolute() or ".." in Path(str(shard)).parts]:
                raise ModelError(f"{index} names {outside[0]!r}, which lies outside of the model; do not use it, or fetch it from its origin.")
            return _sum([folder / str(shard) for shard in sorted(set(shards.values()))])
        if (folder / name).is_file():
            return _sum([folder / name])
    return Counter(), 0


def _sum(files: list[Path]) -> tuple[Counter[str], int]:
    elements: Counter[str] = Counter()
    for path in files:
        if not path.is_file():
            raise ModelError(f"{path} is missing though the index names it; fetch the model again.")
        for dtype, count in read_header(path).values():
            elements[dtype] += count
    return elements, sum(path.stat().st_size for path in files)


def _no_weights(model: Path, folder: Path) -> ModelError:
    if any(any(folder.glob(pattern)) for pattern in _PICKLES):
        loader = "diffusers import DiffusionPipeline" if folder != model else "transformers import AutoModelForCausalLM"
        convert = f"from {loader} as M; M.from_pretrained('{model}').save_pretrained('{model}-safetensors')"
        return ModelError(
            f"{folder} has pickled weights only, which can run code when loaded; if you trust whoever made them, convert them on a machine "
            f'without secrets, copy the other files along, and give that folder: python -c "{convert}".'
        )
    return ModelError(f"{model} has no safetensors weights; fetch the whole model, or save it with `save_pretrained`.")


def _native(model_type: str) -> bool:
    """Whether the installed transformers defines this type of model itself, so that code in the folder is not needed."""
    library = importlib.util.find_spec("transformers")  # finds the folder without importing it
    if not model_type.replace("-", "_").isidentifier() or library is None or library.origin is None:
        return False
    return (Path(library.origin).parent / "models" / model_type.replace("-", "_")).is_dir()


def _context(config: Mapping[str, Any]) -> int:
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        for key in _CONTEXT_KEYS:
            if isinstance(source.get(key), int) and source[key] > 0:
                return int(source[key])
    return ASSUMED_CONTEXT
