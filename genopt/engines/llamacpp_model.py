"""A GGUF file in llama.cpp, on the low-level calls of its Python binding, and caches that continue texts with it.

Every text has a sequence of its own in a cache, and each decode step is one batch of them all.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from genopt.engines.llamacpp_options import LlamaCppOptions
from genopt.engines.rows import Logits
from genopt.errors import InfeasibleError, OutOfMemoryError, StageError

CHUNK = 256
"""Prompt tokens per call: enough for its kernels, while all their logits stay below a few dozen megabytes."""
STEP = 256
"""Caches are made for multiples of this many tokens, so that requests of similar length share one."""
CACHE_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}
"""Numbers of ggml's types (ggml.h, enum ggml_type)."""
CACHE_BYTES = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of a number; quantized ones come in blocks of 32 with a scale of 16 bits."""


def weight_file(folder: Path) -> Path:
    """The GGUF file of an artifact.

    Raises:
        StageError: There is not exactly one.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise StageError(f"{folder} holds {len(found)} GGUF files instead of one; convert the model with the technique gguf first.")
    return found[0]


def has_amx() -> bool:
    """Whether this processor multiplies tiles of 8-bit integers."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "amx_int8" in path.read_text(encoding="utf-8")


class LlamaCppModel:
    """The loaded weights, which go when nothing refers to them any more.

    Args:
        folder: Artifact with the trait `gguf`.
        options: The engine's.

    Raises:
        StageError: The folder holds no GGUF file that this version of the library reads.
    """

    def __init__(self, folder: Path, options: LlamaCppOptions) -> None:
        path = weight_file(folder)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Weights laid out for AMX end the process or come out wrong (llama.cpp, issues 20824 and 16315); no option turns that layout off alone.
        params.use_extra_bufts = not has_amx()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if options.mmap else llama_cpp.LLAMA_LOAD_MODE_NONE
        self.handle: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise StageError(
                f"llama.cpp cannot read {path.name}: its GGUF version, architecture or number format is unknown to it, or the file is cut off; "
                "convert the model again, or use another engine."
            )
        weakref.finalize(self, llama_cpp.llama_model_free, self.handle)
        self.options = options
        self.vocabulary: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))
        trained: int = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.limit = min(trained, options.max_context or trained)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values per token of one sequence."""
        return self._cached_numbers() / 2 * (CACHE_BYTES[self.options.cache_type_k] + CACHE_BYTES[self.options.cache_type_v])

    def _cached_numbers(self) -> int:
        """Keys and values of one token."""
        heads, layers = llama_cpp.llama_model_n_head_kv(self.handle), llama_cpp.llama_model_n_layer(self.handle)
        size = llama_cpp.llama_model_n_embd(self.handle) // llama_cpp.llama_model_n_head(self.handle)
        return int(layers * heads * (self._told("attention.key_length", size) + self._told("attention.value_length", size)))

    def _told(self, key: str, otherwise: int) -> int:
        """A number that the file's metadata tells of its architecture, which most files leave out where it follows from others."""
        length = 64
        buffer = ctypes.create_string_buffer(length)
        architecture = buffer.value.decode() if llama_cpp.llama_model_meta_val_str(self.handle, b"general.architecture", buffer, length) > 0 else ""
        found = llama_cpp.llama_model_meta_val_str(self.handle, f"{architecture}.{key}".encode(), buffer, length)
        return int(buffer.value) if found > 0 else otherwise


class LlamaCppCache:
    """Keys and values of some sequences, with a batch that its steps fill; freed when nothing refers to it any more.

    Args:
        model: The model.
        tokens: Tokens that each sequence may hold at least.
        sequences: Number of sequences.

    Raises:
        InfeasibleError: The library has no such cache.
    """

    def __init__(self, model: LlamaCppModel, tokens: int, sequences: int) -> None:
        options = model.options
        self.tokens = min(-(-tokens // STEP) * STEP, -(-model.limit // STEP) * STEP)
        self.sequences = sequences
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.tokens * sequences, sequences
        params.n_batch = params.n_ubatch = max(CHUNK, sequences)
        params.n_threads = options.threads or os.cpu_count() or 1
        params.n_threads_batch = options.threads_batch or params.n_threads
        params.type_k, params.type_v = CACHE_TYPES[options.cache_type_k], CACHE_TYPES[options.cache_type_v]
        params.flash_attn_type = -1 if options.flash_attention is None else int(options.flash_attention)
        params.kv_unified, params.no_perf = False, True
        self._context: Any = llama_cpp.llama_init_from_model(model.handle, params)
        if not self._context:
            raise InfeasibleError("llama.cpp cannot make a cache of this kind; choose other cache types, flash attention or a shorter context.")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = model.vocabulary
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        weakref.finalize(self, _free, self._context, self._batch, model)

    def run(self, tokens: Sequence[int], places: Sequence[int], sequences: Sequence[int], *, last: bool = False) -> Logits:
        """Appends tokens to sequences; sequences without a gap between their numbers, in order, are computed together.

        Args:
            tokens: At most `CHUNK`, or one for each sequence.
            places: How many tokens there are before each in its sequence.
            sequences: The sequence of each.
            last: Compute the logits of the last token alone.

        Returns:
            Logits, one row per token, in the library's memory; overwritten by the next call.
        """
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for index, (token, place, sequence) in enumerate(zip(tokens, places, sequences, strict=True)):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, not last or index == count - 1
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise (
                OutOfMemoryError("llama.cpp found no room in its cache; give fewer streams or a smaller max_context.")
                if code == 1
                else StageError(f"llama.cpp could not compute a step (code {code}); see the session's log for the cause.")
            )
        pointer = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (1 if last else count, self._vocabulary))

    def forget(self, sequence: int, kept: int = 0) -> None:
        """Removes all but the first `kept` tokens of a sequence.

        Raises:
            InfeasibleError: The model keeps a state of all tokens together.
        """
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, kept, -1):
            raise InfeasibleError("This model's cache cannot forget single tokens; leave `lookahead` out.")

    def copy(self, sequence: int, other: LlamaCppCache, to: int) -> None:
        """Makes a sequence of another cache of as many, or of this one, the same as one of this; what that held is lost.

        `llama_memory_seq_cp` would copy all that there is room for, and only with the next step.
        """
        size = llama_cpp.llama_state_seq_get_size(self._context, sequence)
        state = (ctypes.c_uint8 * size)()
        read = llama_cpp.llama_state_seq_get_data(self._context, state, size, sequence)
        if not read or not llama_cpp.llama_state_seq_set_data(other._context, state, read, to):
            raise StageError("llama.cpp could not copy a sequence of its cache; see the session's log for the cause.")


def _free(context: Any, batch: Any, model: LlamaCppModel) -> None:
    """Frees a cache; the reference to its model sees to it that this goes later."""
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
