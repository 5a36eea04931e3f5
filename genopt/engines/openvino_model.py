"""An exported decoder on OpenVINO's plain runtime: one compiled graph reads prompts, decodes and scores.

OpenVINO GenAI streams one request at a time and tells no log-probabilities but those of the chosen tokens, so the loop around
the graph is ours. Its keys and values are the graph's own state; see `genopt.engines.openvino_paged` for those in pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from genopt.engines.openvino_graph import PLACES, SCORED, Logits, Vectors, project_places, read_graph, settings
from genopt.engines.openvino_options import OpenVinoOptions
from genopt.errors import InfeasibleError

CHUNK = 256
"""Prompt tokens per inference of all streams together."""
INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx", PLACES})
CACHE_BYTES: Mapping[str, float] = {"u8": 1.0, "u4": 0.5, "f16": 2.0, "bf16": 2.0, "f32": 4.0, "dynamic": 4.0}
"""Bytes of a number, by what OpenVINO calls its type."""


class OpenVinoModel:
    """The compiled graph and the one request whose state holds all streams' keys and values.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model, or one that OpenVINO cannot read.
        InfeasibleError: The graph takes inputs that this engine does not know.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        self.vocabulary, self.context, core, model = read_graph(folder)
        project_places(model, axis=1)
        self._inputs = {name for port in model.inputs for name in port.get_names()} & INPUTS
        unknown = [port.any_name for port in model.inputs if not port.get_names() & INPUTS]
        if unknown:
            raise InfeasibleError(f"The exported graph takes inputs that are not supported ({', '.join(unknown)}); use another engine.")
        compiled = core.compile_model(model, "CPU", settings(options))
        self._compiled: Any = compiled
        self._request: Any = compiled.create_infer_request()
        self._bound: dict[str, NDArray[Any]] = {}
        number = CACHE_BYTES.get(str(compiled.get_property("KV_CACHE_PRECISION").get_type_name()), 4.0)
        self.kv_bytes_per_token = number * sum(_width(variable.info.data_shape) for variable in model.get_variables())

    def reset(self) -> None:
        """Forgets all streams.

        There is a fresh request: one whose state is reset and that then reads another number of streams answers with NaN at times (OpenVINO
        2026.4, in f32 too: 11 of 32 sets of streams, none with fresh requests, which take 0.2 ms).
        """
        self._request = self._compiled.create_infer_request()
        self._bound.clear()

    def infer(self, ids: Vectors, mask: Vectors, positions: Vectors, kept: NDArray[np.int32], places: Vectors) -> Logits:
        """Continues the streams.

        Arrays are read where they are, so they must be contiguous; one that is given again is not bound again, which costs a tenth of a
        millisecond for all of them.

        Args:
            ids: New tokens, a row per stream.
            mask: Of the stream's tokens, old and new, 1 for those that may be attended to.
            positions: Of the new tokens in their sequences.
            kept: Which of the streams of the last call these are.
            places: Columns of `ids` that are projected onto the vocabulary.

        Returns:
            Logits of every row at each place, in memory that the next call overwrites.
        """
        given: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": kept, PLACES: places}
        for name in self._inputs:
            if self._bound.get(name) is not given[name]:
                self._request.set_tensor(name, openvino.Tensor(given[name], shared_memory=True))
                self._bound[name] = given[name]
        self._request.infer(share_outputs=True)
        found: Logits = self._request.get_tensor("logits").data
        return found

    def read(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Reads one text from its beginning; yields the logits of consecutive parts of it, a row per token."""
        self.reset()
        everything = np.asarray(ids, np.int64)[None]
        for start in range(0, len(ids), SCORED):
            piece = everything[:, start : start + SCORED]
            end = start + piece.shape[1]
            positions, places = np.arange(start, end, dtype=np.int64)[None], np.arange(piece.shape[1], dtype=np.int64)
            yield self.infer(piece, np.ones((1, end), np.int64), positions, np.zeros(1, np.int32), places)[0]


class Streams:
    """Sequences that advance together.

    Prompts are aligned at their ends: the shorter ones begin with padding, which nothing attends to.

    Args:
        model: The model; it serves one set of streams at a time.
        prompts: At least one.
        new_tokens: Most tokens that follow.
    """

    def __init__(self, model: OpenVinoModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self._model, self._prompts = model, prompts
        self._lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        self._filled = int(self._lengths.max())
        self._mask = np.ones((len(prompts), self._filled + new_tokens), np.int64)
        for row, length in zip(self._mask, self._lengths, strict=True):
            row[: self._filled - length] = 0
        self._begin_step(len(prompts))

    def _begin_step(self, rows: int) -> None:
        """Arrays that steps of so many streams write into."""
        self._ids, self._positions = np.empty((rows, 1), np.int64), np.empty((rows, 1), np.int64)
        self._all = self._kept = np.arange(rows, dtype=np.int32)
        self._last = np.zeros(1, np.int64)

    @property
    def held_tokens(self) -> int:
        """Tokens that their cache has room for, padding too."""
        return int(self._mask.size)

    def prefill(self) -> Logits:
        """Reads the prompts; returns the logits after each."""
        rows, longest = len(self._prompts), self._filled
        ids = np.zeros((rows, longest), np.int64)
        for row, prompt in zip(ids, self._prompts, strict=True):
            row[longest - len(prompt) :] = prompt
        positions = np.maximum(np.arange(longest, dtype=np.int64) - (longest - self._lengths)[:, None], 0)
        self._model.reset()
        width = max(1, CHUNK // rows)
        for start in range(0, longest, width):
            end = min(start + width, longest)
            part = slice(start, end)
            logits = self._model.infer(
                np.ascontiguousarray(ids[:, part]), np.ascontiguousarray(self._mask[:, :end]), np.ascontiguousarray(positions[:, part]), self._kept,
                np.array([end - start - 1], np.int64),
            )  # fmt: skip
        return logits[:, 0]

    def step(self, tokens: Sequence[int]) -> Logits:
        """Appends one token to each stream; returns the logits after it."""
        self._filled += 1
        self._ids[:, 0], self._positions[:, 0] = tokens, self._lengths
        mask = np.ascontiguousarray(self._mask[:, : self._filled])
        logits = self._model.infer(self._ids, mask, self._positions, self._kept, self._last)
        self._lengths += 1
        self._kept = self._all
        return logits[:, 0]

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with some of the streams."""
        chosen = np.asarray(places, np.int32)
        self._mask, self._lengths = self._mask[chosen], self._lengths[chosen]
        self._begin_step(len(chosen))
        self._kept = chosen


def _width(shape: Any) -> int:
    """Numbers per token of one stream that a part of the cache has: the product of its fixed dimensions."""
    return int(np.prod([int(size.get_length()) for size in shape if size.is_static]))
