"""A session of OpenVINO; see `genopt.engines.openvino_model` for why it does not use OpenVINO GenAI."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.distribution import Distributions, Wanted, require_rows
from genopt.engines.normalizer import Normalizer
from genopt.engines.openvino import OpenVinoOptions
from genopt.engines.openvino_model import OpenVinoModel, Streams
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Row, require_fit


class OpenVinoSession:
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model.
        InfeasibleError: Its graph cannot be used.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        self._model = OpenVinoModel(folder, options)
        self._limit = min(self._model.context, options.max_context or self._model.context)
        self._normalizer = Normalizer(options.threads or os.cpu_count() or 1)
        self._held_tokens = 0
        self._pads = True

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once, and finds out whether prompts of several lengths can be read together.

        On one processor with AMX, where bf16 is the default, padding spread NaN; on another it did not, so it is tried.
        """
        longest = min(8, self._limit - 2)
        self.generate([GenerationRequest(prompt_ids=(0,) * longest, max_new_tokens=2)])
        self._pads = bool(np.isfinite(Streams(self._model, [(0,) * longest, (0,)], 1).prefill()).all())

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """
        started = time.monotonic_ns()
        for request in requests:
            self._check(request.prompt_ids, len(request.prompt_ids) + request.max_new_tokens)
        rows = [Row(index, request) for index, request in enumerate(requests)]
        for together in self._alike(rows):
            self._run(together, on_token)
        return [row.generation(started) for row in rows]

    def _alike(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Those that can be continued together."""
        groups: dict[int, list[Row]] = {}
        for row in rows:
            groups.setdefault(0 if self._pads else len(row.request.prompt_ids), []).append(row)
        return list(groups.values())

    def _run(self, rows: Sequence[Row], on_token: OnToken | None) -> None:
        streams = Streams(self._model, [row.request.prompt_ids for row in rows], max(row.request.max_new_tokens for row in rows))
        self._held_tokens = streams.held_tokens
        active, logits = list(rows), streams.prefill()
        while active:
            for row, values in zip(active, logits, strict=True):
                row.take(values, on_token)
            going = [place for place, row in enumerate(active) if not row.finish_reason]
            if going and len(going) < len(active):
                streams.keep(going)
            active = [active[place] for place in going]
            if active:
                logits = streams.step([row.tokens[-1] for row in active])

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
        return self._normalizer.text(self._model.read(sequence[:-1]), sequence[1:], wanted)

    def _check(self, ids: Sequence[int], length: int) -> None:
        require_fit(ids, length, context=self._limit, vocabulary=self._model.vocabulary)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._model.kv_bytes_per_token
        return process_memory().model_copy(update={"kv_cache_bytes": round(self._held_tokens * each), "kv_bytes_per_token": each})

    def close(self) -> None:
        """See `TextSession.close`."""
        self._normalizer.close()
        del self._model
