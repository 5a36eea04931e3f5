"""GGUF files: written from safetensors with the gguf package, quantized with llama.cpp.

Runs in the environment of llama.cpp, without torch. The file carries no tokenizer: every engine gets token ids that the
original's tokenizer made.
"""

from __future__ import annotations

import ctypes
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from genopt.errors import InfeasibleError, StageError
from genopt.models.headers import weight_files
from genopt.techniques.gguf_shape import Shape, read_shape
from genopt.techniques.importance import FILE

TYPES: dict[str, tuple[type[np.generic], gguf.GGMLQuantizationType]] = {
    "F32": (np.float32, gguf.GGMLQuantizationType.F32), "F16": (np.float16, gguf.GGMLQuantizationType.F16),
    "BF16": (np.uint16, gguf.GGMLQuantizationType.BF16),
}  # fmt: skip
"""Type of the numbers in memory and in the file, by name in a safetensors header; numpy has no bfloat16."""
FILE_TYPES = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16, "BF16": gguf.LlamaFileType.MOSTLY_BF16}
QUANTIZED = {
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K, "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}  # fmt: skip

ROPE_FACTORS = "rope_freqs.weight"
MASKS = (".attn.bias", ".attn.masked_bias")
"""Constants that old checkpoints of GPT-2 carry along."""
CONVOLUTION = re.compile(r"\.c_(attn|proj|fc)\.weight$")
"""Matrices of GPT-2, which stores them as convolutions."""

Values = NDArray[Any]


def write_gguf(source: Path, destination: Path) -> None:
    """Writes a model's weights and shape.

    Args:
        source: Hugging Face folder.
        destination: The file.

    Raises:
        InfeasibleError: A tensor or number type has no place in the format.
    """
    shape = read_shape(source)
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.layout.name)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    writer = gguf.GGUFWriter(destination, shape.layout.name)
    _write_shape(writer, shape)
    kinds: dict[str, int] = {}
    for name, kind, values in _tensors(source):
        if (shape.tied and name == "lm_head.weight") or name.endswith(MASKS):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise InfeasibleError(f"GGUF has no place for the tensor {name!r}; use another engine for this model.")
        if shape.layout.paired and (".q_proj." in name or ".k_proj." in name):
            values = _paired(values, shape.heads if ".q_proj." in name else shape.groups)
        if shape.layout.transposed and CONVOLUTION.search(name):
            values = values.T
        if values.ndim == 1:
            writer.add_tensor(target, _float32(values, kind))
            continue
        kinds[kind] = kinds.get(kind, 0) + values.size
        writer.add_tensor(target, np.ascontiguousarray(values).view(np.uint8), raw_dtype=TYPES[kind][1])
    writer.add_file_type(FILE_TYPES[max(kinds, key=lambda kind: kinds[kind])])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.groups)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    if shape.layout.rotary:
        writer.add_rope_dimension_count(shape.head_size)
        writer.add_rope_freq_base(shape.rope_base)
    if shape.rope_factors:
        writer.add_tensor(ROPE_FACTORS, np.array(shape.rope_factors, np.float32))
    (writer.add_layer_norm_rms_eps if shape.layout.root_mean_square else writer.add_layer_norm_eps)(shape.epsilon)
    writer.add_tokenizer_model("no_vocab")


def _paired(values: Values, heads: int) -> Values:
    """Rows of a query or key projection in the order that llama.cpp rotates them.

    Transformers rotates the first half of a head against the second, llama.cpp each even row against the odd one after it
    (convert_hf_to_gguf.py, LlamaModel.permute).
    """
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def _float32(values: Values, kind: str) -> NDArray[np.float32]:
    """Norms and biases are fp32 in every GGUF file."""
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _tensors(folder: Path) -> Iterator[tuple[str, str, Values]]:
    """Name, number type and values of every tensor, mapped rather than read, in the order of their names.

    The layout is that of https://github.com/huggingface/safetensors: 8 bytes of header length, a JSON header, the data.
    """
    found: dict[str, tuple[str, Values]] = {}  # maps of the files
    for path in weight_files(folder):
        found |= _mapped(path)
    for name in sorted(found):
        yield name, *found[name]


def _mapped(path: Path) -> dict[str, tuple[str, Values]]:
    """Number type and values of the tensors of a file, by name."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r")
    found: dict[str, tuple[str, Values]] = {}
    for name, entry in header.items():
        if entry["dtype"] not in TYPES:
            raise InfeasibleError(f"The tensor {name!r} is stored as {entry['dtype']}, which cannot be written as GGUF; use another engine.")
        begin = 8 + length + int(entry["data_offsets"][0])
        kind = TYPES[entry["dtype"]][0]
        found[name] = entry["dtype"], np.frombuffer(data, kind, math.prod(entry["shape"]), begin).reshape(entry["shape"])
    return found


def importance(folder: Path) -> dict[str, NDArray[np.float32]]:
    """What `genopt.techniques.importance` found of each matrix, by its name in a GGUF file; nothing where it was not asked."""
    if not (folder / FILE).exists():
        return {}
    shape = read_shape(folder)
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == shape.layout.name)
    names = gguf.get_tensor_name_map(architecture, shape.layers)
    known = {names.get_name(name, try_suffixes=(".weight",)): values for name, (_, values) in _mapped(folder / FILE).items()}
    return {name: np.ascontiguousarray(values, np.float32) for name, values in known.items() if name is not None}


def quantize(source: Path, destination: Path, name: str, *, threads: int, weighed: Mapping[str, NDArray[np.float32]] = MappingProxyType({})) -> None:
    """Quantizes a GGUF file.

    Args:
        source: In full precision.
        destination: The new file.
        name: A key of `QUANTIZED`.
        threads: CPU threads.
        weighed: How much each input of a matrix matters, by the matrix's name in the file.

    Raises:
        StageError: llama.cpp refused; nothing is left of the new file.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype = threads, int(QUANTIZED[name])
    entries = [(key.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size) for key, values in weighed.items()]
    if entries:
        params.imatrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))(*entries)  # the last one, all zeros, ends the list
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(destination).encode(), ctypes.byref(params))
    if code:
        destination.unlink(missing_ok=True)
        raise StageError(f"llama.cpp could not quantize to {name} (code {code}); see the stage's log, or choose another format.")
