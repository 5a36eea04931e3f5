"""Generates and scores with models in ONNX Runtime GenAI's format, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.ort_model import DecodeBatch, Logits, OrtModel
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Row, require_fit
from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings

ROWS = 8
"""Rows of logits that are normalized at once, so that they stay in the cache of a core."""


class OrtGenaiOptions(Record):
    """Options of the engine.

    Attributes:
        threads: Threads of each operator; None takes one per core.
        max_context: Longest prompt with its answer, in tokens; None takes the model's.
        spin: Let idle threads wait in a loop: faster on free cores, slower and wasteful on busy ones.
    """

    threads: int | None = Field(default=None, gt=0)
    max_context: int | None = Field(default=None, ge=3)
    spin: bool = True


class OrtGenaiSession:
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Artifact with the trait `onnx_genai`.
        options: Runtime options.
    """

    def __init__(self, folder: Path, options: OrtGenaiOptions) -> None:
        self._model = OrtModel(folder, threads=options.threads, spin=options.spin)
        self._context = min(self._model.shape.context, options.max_context or self._model.shape.context)
        self._held_bytes = 0
        self._workers = options.threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="log-softmax")

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once."""
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._context - 2), max_new_tokens=2)])

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
        longest = max(len(row.request.prompt_ids) + row.request.max_new_tokens for row in rows)
        batch = DecodeBatch(self._model, len(rows), longest)
        self._held_bytes = batch.kv_bytes
        active: list[Row] = []
        for row in rows:
            row.take(batch.prefill(len(active), row.request.prompt_ids), on_token)
            if not row.finish_reason:
                active.append(row)
        while active:
            logits = batch.step([row.tokens[-1] for row in active])
            for row, values in zip(active, logits, strict=True):
                row.take(values, on_token)
            for place in reversed(range(len(active))):
                if active[place].finish_reason:
                    batch.drop(place, len(active))
                    last = active.pop()
                    if place < len(active):
                        active[place] = last

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence) - 1)
        results = [self._score(sequence) for sequence in sequences]
        return Scores(log_probs=tuple(tuple(values) for values, _ in results), top_ids=tuple(tuple(tops) for _, tops in results))

    def _score(self, sequence: Sequence[int]) -> tuple[list[float], list[int]]:
        targets = np.asarray(sequence[1:], np.int64)
        cache = self._model.cache(1, len(targets))
        log_probs: list[float] = []
        tops: list[int] = []
        for logits in self._model.read(sequence[:-1], cache, 0):
            share = -(-len(logits) // self._workers)
            starts = range(0, len(logits), share)
            pieces = [(logits[start : start + share], targets[len(tops) + start : len(tops) + start + share]) for start in starts]
            for values, top in self._pool.map(_normalize, *zip(*pieces, strict=True)):
                log_probs.extend(values.tolist())
                tops.extend(top.tolist())
        return log_probs, tops

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._context, vocabulary=self._model.shape.vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        found = process_memory()
        return found.model_copy(update={"kv_cache_bytes": self._held_bytes, "kv_bytes_per_token": self._model.kv_bytes_per_token})

    def close(self) -> None:
        """See `TextSession.close`."""
        self._pool.shutdown()
        del self._model


def _normalize(logits: Logits, targets: NDArray[np.int64]) -> tuple[Logits, NDArray[np.int64]]:
    """Log-probability of each row's target, and each row's most probable id."""
    log_probs = np.empty(len(logits), np.float32)
    tops = np.empty(len(logits), np.int64)
    scratch = np.empty((min(ROWS, len(logits)), logits.shape[1]), np.float32)
    for start in range(0, len(logits), ROWS):
        block = logits[start : start + ROWS]
        every, part = np.arange(len(block)), slice(start, start + len(block))
        tops[part] = block.argmax(axis=1)
        highest = block[every, tops[part]]
        shifted = np.subtract(block, highest[:, None], out=scratch[: len(block)])
        total = np.exp(shifted, out=shifted).sum(axis=1)
        log_probs[part] = block[every, targets[part]] - highest - np.log(total)
    return log_probs, tops


class OrtGenaiEngine:
    """See `genopt.engines.base.Engine`."""

    name = "ort_genai"
    accepts = frozenset({"onnx_genai"})
    layer_overhead_s = 4e-5

    @staticmethod
    def check(options: dict[str, JsonValue]) -> None:
        """See `Engine.check`."""
        parse_settings(OrtGenaiOptions, options, "ort_genai")
        if importlib.util.find_spec("onnxruntime") is None:
            raise InfeasibleError("onnxruntime is not installed; install it with: pip install onnxruntime.")

    @staticmethod
    def open(artifact: Path, options: dict[str, JsonValue]) -> OrtGenaiSession:
        """See `Engine.open`."""
        session = OrtGenaiSession(artifact, parse_settings(OrtGenaiOptions, options, "ort_genai"))
        session.warm_up()
        return session
