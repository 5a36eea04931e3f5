"""A session of llama.cpp, on the low-level calls of its Python binding.

A context is made per number of streams and kept while it fits. Every stream has a sequence of its own in the cache, and
each decode step is one batch of them all.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.llamacpp import LlamaCppOptions
from genopt.engines.normalizer import Normalizer
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Row, require_fit
from genopt.errors import InfeasibleError, OutOfMemoryError, StageError

CHUNK = 256
"""Prompt tokens per call: enough for its kernels, while all their logits stay below a few dozen megabytes."""
STEP = 256
"""Contexts are made for multiples of this many tokens, so that requests of similar length share one."""
CACHE_TYPES = {"f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2}
"""Numbers of ggml's types (ggml.h, enum ggml_type)."""
CACHE_BYTES = {"f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Bytes of a number; quantized ones come in blocks of 32 with a scale of 16 bits."""

Logits = NDArray[np.float32]


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


class _Context:
    """A cache for some streams, with a batch that its steps fill.

    Args:
        model: The loaded model.
        options: The engine's.
        tokens: Tokens that each stream may hold.
        streams: Number of streams.
    """

    def __init__(self, model: int, options: LlamaCppOptions, tokens: int, streams: int) -> None:
        self.tokens, self.streams = tokens, streams
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = tokens * streams, streams
        params.n_batch = params.n_ubatch = max(CHUNK, streams)
        params.n_threads = options.threads or os.cpu_count() or 1
        params.n_threads_batch = options.threads_batch or params.n_threads
        params.type_k, params.type_v = CACHE_TYPES[options.cache_type_k], CACHE_TYPES[options.cache_type_v]
        params.flash_attn_type = -1 if options.flash_attention is None else int(options.flash_attention)
        params.kv_unified, params.no_perf = False, True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise InfeasibleError("llama.cpp cannot make a cache of this kind; choose other cache types, flash attention or a shorter context.")
        self.memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def run(self, tokens: Sequence[int], places: Sequence[int], streams: Sequence[int], wanted: Sequence[bool]) -> Logits:
        """Reads tokens of streams; returns the logits at the wanted ones, a row for each.

        They lie in the library's memory and are overwritten by the next call.
        """
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, place, stream, keep) in enumerate(zip(tokens, places, streams, wanted, strict=True)):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, keep
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = stream
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise (
                OutOfMemoryError("llama.cpp found no room in its cache; give fewer streams or a smaller max_context.")
                if code == 1
                else StageError(f"llama.cpp could not compute a step (code {code}); see the session's log for the cause.")
            )
        rows = sum(wanted)
        if not rows:
            return np.empty((0, self._vocabulary), np.float32)
        pointer = ctypes.cast(llama_cpp.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (rows, self._vocabulary))

    def read(self, ids: Sequence[int], stream: int, *, every: bool) -> Iterator[Logits]:
        """Reads a text into a stream that is empty, in chunks; yields each one's logits at every token, or at the last one alone."""
        llama_cpp.llama_memory_seq_rm(self.memory, stream, -1, -1)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            last = start + len(chunk) == len(ids)
            wanted = [every or (last and index == len(chunk) - 1) for index in range(len(chunk))]
            yield self.run(chunk, range(start, start + len(chunk)), [stream] * len(chunk), wanted)

    def close(self) -> None:
        """Frees the cache."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


class LlamaCppSession:
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Artifact with the trait `gguf`.
        options: Runtime options.

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
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise StageError(
                f"llama.cpp cannot read {path.name}: its GGUF version, architecture or number format is unknown to it, or the file is cut off; "
                "convert the model again, or use another engine."
            )
        self._options = options
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        self._limit = min(trained, options.max_context or trained)
        self._context: _Context | None = None
        self._normalizer = Normalizer(options.threads or os.cpu_count() or 1)

    def _for(self, tokens: int, streams: int) -> _Context:
        """A context with this room; the one at hand where it has it."""
        rounded = min(-(-tokens // STEP) * STEP, -(-self._limit // STEP) * STEP)
        held = self._context
        if held is None or held.tokens < rounded or held.streams != streams:
            if held is not None:
                held.close()
                self._context = None
            self._context = held = _Context(self._model, self._options, rounded, streams)
        return held

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._limit - 2), max_new_tokens=2)])

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """
        started = time.monotonic_ns()
        for request in requests:
            self._check(request.prompt_ids, len(request.prompt_ids) + request.max_new_tokens)
        rows = [Row(index, request) for index, request in enumerate(requests)]
        if rows:
            self._run(rows, on_token)
        return [row.generation(started) for row in rows]

    def _run(self, rows: Sequence[Row], on_token: OnToken | None) -> None:
        context = self._for(max(len(row.request.prompt_ids) + row.request.max_new_tokens for row in rows), len(rows))
        for row in rows:
            for found in context.read(row.request.prompt_ids, row.index, every=False):
                if len(found):
                    row.take(found[-1], on_token)
        while active := [row for row in rows if not row.finish_reason]:
            places = [len(row.request.prompt_ids) + len(row.tokens) - 1 for row in active]
            logits = context.run([row.tokens[-1] for row in active], places, [row.index for row in active], [True] * len(active))
            for row, values in zip(active, logits, strict=True):
                row.take(values, on_token)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence) - 1)
        return Scores.of([self._distributions(sequence, 0) for sequence in sequences])

    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`.

        Raises:
            SpecError: The sequence is longer than the context, or has ids outside of the vocabulary.
        """
        self._check(sequence, len(sequence) - 1)
        if not isinstance(wanted, int):
            require_rows(wanted, len(sequence))
        return self._distributions(sequence, wanted)

    def _distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        context = self._for(len(sequence) - 1, 1)
        return self._normalizer.text(context.read(sequence[:-1], 0, every=True), sequence[1:], wanted)

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._limit, vocabulary=self._vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._cached_numbers() / 2 * (CACHE_BYTES[self._options.cache_type_k] + CACHE_BYTES[self._options.cache_type_v])
        held = self._context.tokens * self._context.streams if self._context is not None else 0
        return process_memory().model_copy(update={"kv_cache_bytes": round(held * each), "kv_bytes_per_token": each})

    def _cached_numbers(self) -> int:
        """Keys and values of one token."""
        heads, layers = llama_cpp.llama_model_n_head_kv(self._model), llama_cpp.llama_model_n_layer(self._model)
        size = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        return int(layers * heads * (self._told("attention.key_length", size) + self._told("attention.value_length", size)))

    def _told(self, key: str, otherwise: int) -> int:
        """A number that the file's metadata tells of its architecture, which most files leave out where it follows from others."""
        length = 64
        buffer = ctypes.create_string_buffer(length)
        architecture = buffer.value.decode() if llama_cpp.llama_model_meta_val_str(self._model, b"general.architecture", buffer, length) > 0 else ""
        found = llama_cpp.llama_model_meta_val_str(self._model, f"{architecture}.{key}".encode(), buffer, length)
        return int(buffer.value) if found > 0 else otherwise

    def close(self) -> None:
        """See `TextSession.close`."""
        if self._context is not None:
            self._context.close()
            self._context = None
        self._normalizer.close()
        llama_cpp.llama_model_free(self._model)
