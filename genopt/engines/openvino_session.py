"""Sessions of OpenVINO; see `genopt.engines.openvino_model` for why they do not use OpenVINO GenAI."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken
from genopt.engines.decoding import DecodingBatch, generate_together
from genopt.engines.logits_session import LogitsSession
from genopt.engines.openvino_model import OpenVinoModel, Streams
from genopt.engines.openvino_options import OpenVinoOptions
from genopt.engines.openvino_paged import PagedDecoder, PagedModel
from genopt.engines.process_memory import process_memory
from genopt.engines.rows import Logits, Row


class OpenVinoSession(LogitsSession):
    """What does not depend on where keys and values are.

    Args:
        model: The compiled graph.
        options: Runtime options.
    """

    def __init__(self, model: OpenVinoModel | PagedModel, options: OpenVinoOptions) -> None:
        context = min(model.context, options.max_context or model.context)
        super().__init__(context=context, vocabulary=model.vocabulary, threads=options.threads)
        self._graph = model

    def _read(self, text: Sequence[int]) -> Iterator[Logits]:
        return self._graph.read(text)

    def close(self) -> None:
        """See `TextSession.close`."""
        super().close()
        del self._graph


class StatefulSession(OpenVinoSession):
    """Keys and values are the graph's state: one batch after another.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model.
        InfeasibleError: Its graph cannot be used.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        self._model = OpenVinoModel(folder, options)
        super().__init__(self._model, options)
        self._held_tokens = 0
        self._pads = True

    def warm_up(self) -> None:
        """Runs a prompt and a decode step once, and finds out whether prompts of several lengths can be read together.

        On one processor with AMX, where bf16 is the default, padding spread NaN; on another it did not, so it is tried.
        """
        super().warm_up()
        longest = min(8, self._context - 2)
        self._pads = bool(np.isfinite(Streams(self._model, [(0,) * longest, (0,)], 1).prefill()).all())

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `LogitsSession.generate`."""
        started = time.monotonic_ns()
        for request in requests:
            self._check_request(request)
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

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._model.kv_bytes_per_token
        return process_memory().model_copy(update={"kv_cache_bytes": round(self._held_tokens * each), "kv_bytes_per_token": each})

    def close(self) -> None:
        """See `TextSession.close`."""
        super().close()
        del self._model


class PagedSession(OpenVinoSession):
    """Keys and values lie in pages: requests join and leave between steps.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model.
        InfeasibleError: Its graph cannot be used.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        self._model = PagedModel(folder, options)
        super().__init__(self._model, options)
        self._lookahead = options.lookahead
        self._held_bytes = 0

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `LogitsSession.generate`."""
        decoder = PagedDecoder(self._model, max(1, len(requests)))
        found = generate_together(self._batch(decoder), requests, on_token)
        self._held_bytes = decoder.kv_bytes
        return found

    def running_batch(self, slots: int) -> DecodingBatch:
        """See `Joinable.running_batch`."""
        return self._batch(PagedDecoder(self._model, slots))

    def _batch(self, decoder: PagedDecoder) -> DecodingBatch:
        return DecodingBatch(decoder, self._check_request, checking=decoder, lookahead=self._lookahead)

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        each = self._model.page_bytes / self._model.page_tokens
        return process_memory().model_copy(update={"kv_cache_bytes": self._held_bytes, "kv_bytes_per_token": each})

    def close(self) -> None:
        """See `TextSession.close`."""
        super().close()
        del self._model
