"""A session of OpenVINO on plain inference requests, so that what is judged is what serves.

The exported graph keeps keys and values as state of a request. Each stream has a request of its own; they share the
weights, and take their steps in turn.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.distribution import Distributions, Wanted, distributions, require_rows
from genopt.engines.openvino import GRAPH, WEIGHTS, OpenVinoOptions
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Row, require_fit
from genopt.errors import StageError

CHUNK = 128
"""Prompt tokens per inference: bounds the memory of their logits."""

Logits = NDArray[np.float32]


class _Stream:
    """One sequence: a request whose state holds its keys and values."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._names = {name for port in request.model_inputs for name in port.get_names()}
        self._length = 0

    def reset(self) -> None:
        """Forgets the sequence."""
        self._request.reset_state()
        self._length = 0

    def read(self, ids: Sequence[int]) -> Logits:
        """Continues with tokens; returns their logits, in memory of the library that the next call overwrites."""
        end = self._length + len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(self._length, end, dtype=np.int64)[None], "beam_idx": np.zeros(1, np.int32),
        }  # fmt: skip
        self._request.infer({name: value for name, value in inputs.items() if name in self._names}, share_inputs=True)
        self._length = end
        found: Logits = self._request.get_tensor("logits").data[0]
        return found

    def chunks(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Reads a text from its beginning, some tokens at a time."""
        self.reset()
        for start in range(0, len(ids), CHUNK):
            yield self.read(ids[start : start + CHUNK])


class OpenVinoSession:
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        if not (folder / GRAPH).is_file() or not (folder / WEIGHTS).is_file():
            raise StageError(f"{folder} has no {GRAPH} with {WEIGHTS}; export the model with the technique openvino first.")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._vocabulary = int(config["vocab_size"])
        trained = int(config.get("max_position_embeddings") or 2048)
        self._limit = min(trained, options.max_context or trained)
        asked: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if options.threads is not None:
            asked["INFERENCE_NUM_THREADS"] = options.threads
        if options.precision is not None:
            asked["INFERENCE_PRECISION_HINT"] = options.precision
        if options.cache_type is not None:
            asked["KV_CACHE_PRECISION"] = options.cache_type
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(folder / GRAPH, folder / WEIGHTS), "CPU", asked)
        self._streams: list[_Stream] = []

    def _stream(self, place: int) -> _Stream:
        while len(self._streams) <= place:
            self._streams.append(_Stream(self._compiled.create_infer_request()))
        return self._streams[place]

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
        for row in rows:
            for logits in self._stream(row.index).chunks(row.request.prompt_ids):
                last = logits[-1]
            row.take(last, on_token)
        while active := [row for row in rows if not row.finish_reason]:
            for row in active:
                row.take(self._stream(row.index).read([row.tokens[-1]])[-1], on_token)
        return [row.generation(started) for row in rows]

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            self._check(sequence, len(sequence) - 1)
        results = [self._distributions(sequence, 0) for sequence in sequences]
        return Scores(
            log_probs=tuple(tuple(found.log_probs.tolist()) for found in results), top_ids=tuple(tuple(found.top_ids.tolist()) for found in results)
        )  # fmt: skip

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
        targets = np.asarray(sequence[1:], np.int64)
        found: list[Distributions] = []
        done = 0
        for rows in self._stream(0).chunks(sequence[:-1]):
            part = slice(done, done + len(rows))
            found.append(distributions(rows, targets[part], wanted if isinstance(wanted, int) else wanted[part]))
            done += len(rows)
        return Distributions.joined(found)

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._limit, vocabulary=self._vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        return process_memory()

    def close(self) -> None:
        """See `TextSession.close`."""
        self._streams.clear()
        del self._compiled
