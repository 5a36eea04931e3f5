"""The JSON files and safetensors headers of model folders, read without weights or a model library."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from genopt.errors import ModelError

TAKES = "genopt takes causal language models (…ForCausalLM, …LMHeadModel) and text-to-image pipelines of diffusers"
"""How a refusal of another model goes on."""

WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""What transformers and diffusers call a model's weights when they are not in shards."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER_BYTES = 100_000_000
_DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("bool", 8), "U8": ("uint8", 8), "I8": ("int8", 8), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8), "F4": ("float4_e2m1fn", 4), "F6_E2M3": ("float6_e2m3", 6), "F6_E3M2": ("float6_e3m2", 6),
    "I16": ("int16", 16), "U16": ("uint16", 16), "F16": ("float16", 16), "BF16": ("bfloat16", 16), "I32": ("int32", 32),
    "U32": ("uint32", 32), "F32": ("float32", 32), "I64": ("int64", 64), "U64": ("uint64", 64), "F64": ("float64", 64),
    "C64": ("complex64", 64),
}  # fmt: skip
"""Name in torch and bits per element, by name in a safetensors header (https://github.com/huggingface/safetensors)."""


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


def weights(folder: Path, names: tuple[str, ...]) -> tuple[Counter[str], int]:
    """Elements by dtype and bytes of the first of these files that the folder holds, whole or in shards; none if it holds none.

    Args:
        folder: Where to look.
        names: Files with weights, as they are called when they are not in shards.

    Raises:
        ModelError: A shard is missing, or a header is unreadable.
    """
    return _sum(_loaded(folder, names))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or of a pipeline's component that libraries load, which need not all be there.

    Others may lie beside them: the same weights as their maker lays them out (`consolidated.safetensors`), or in another precision.

    Args:
        folder: Where to look.

    Returns:
        What the index names, else the file that is called as weights are; where there is neither, all that there are.

    Raises:
        ModelError: The index cannot be used.
    """
    return _loaded(folder, WEIGHTS) or sorted(folder.glob("*.safetensors"))


def _loaded(folder: Path, names: tuple[str, ...]) -> list[Path]:
    for name in names:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in _shards(index)]
        if (folder / name).is_file():
            return [folder / name]
    return []


def _shards(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index} names no shards; fetch the model again.")
    found = sorted(set(map(str, shards.values())))
    if outside := [shard for shard in found if Path(shard).is_absolute() or ".." in Path(shard).parts]:
        raise ModelError(f"{index} names {outside[0]!r}, which lies outside of the model; do not use it, or fetch it from its origin.")
    return found


def _sum(files: list[Path]) -> tuple[Counter[str], int]:
    elements: Counter[str] = Counter()
    for path in files:
        if not path.is_file():
            raise ModelError(f"{path} is missing though the index names it; fetch the model again.")
        for dtype, count in read_header(path).values():
            elements[dtype] += count
    return elements, sum(path.stat().st_size for path in files)


def has_pickles(folder: Path) -> bool:
    """Whether a folder holds weights in formats that can run code when loaded."""
    return any(any(folder.glob(pattern)) for pattern in _PICKLES)


def no_weights(model: Path, folder: Path) -> ModelError:
    """What is wrong with a folder that should hold weights.

    Args:
        model: The model.
        folder: Its own folder, or that of one of its components.
    """
    if has_pickles(folder):
        loader = "diffusers import DiffusionPipeline" if folder != model else "transformers import AutoModelForCausalLM"
        convert = f"from {loader} as M; M.from_pretrained('{model}').save_pretrained('{model}-safetensors')"
        return ModelError(
            f"{folder} has pickled weights only, which can run code when loaded; if you trust whoever made them, convert them on a machine "
            f'without secrets, copy the other files along, and give that folder: python -c "{convert}".'
        )
    return ModelError(f"{folder} has no safetensors weights; fetch the whole model, or save it with `save_pretrained`.")
