"""An exported decoder whose keys and values lie in pages, with OpenVINO's own transformation of the graph (PagedAttention).

Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023): a sequence holds pages
of a fixed number of tokens that lie anywhere, so sequences of all lengths advance together, and leave, without padding or copies.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from genopt.engines.openvino_graph import PLACES, SCORED, Logits, Vectors, project_places, read_graph, settings
from genopt.engines.openvino_options import OpenVinoOptions
from genopt.errors import InfeasibleError

CHUNK = 256
"""Prompt tokens per inference."""
INPUTS = frozenset(
    {"input_ids", "position_ids", "past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len", PLACES}
)  # fmt: skip
CACHE = ("key_cache.", "value_cache.")


class Page(NamedTuple):
    """What one page of one layer's keys or values takes.

    Attributes:
        name: The graph's input.
        shape: Of a page, as the compiled graph wants it.
        kind: OpenVINO's number format.
        size: Bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    size: int


class Stream:
    """One sequence: its pages in order, and how many tokens they hold."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.length = 0


class Piece(NamedTuple):
    """New tokens of a stream."""

    stream: Stream
    tokens: Sequence[int]


class PagedModel:
    """The compiled graph, which holds no state: every call names the pages.

    Args:
        folder: Artifact with the trait `openvino`.
        options: Runtime options.

    Raises:
        StageError: The folder holds no such model, or one that OpenVINO cannot read.
        InfeasibleError: OpenVINO cannot put this model's attention into pages.
    """

    def __init__(self, folder: Path, options: OpenVinoOptions) -> None:
        self.vocabulary, self.context, core, model = read_graph(folder)
        try:
            paged_attention_transformation(model)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:160]
            raise InfeasibleError(f"OpenVINO cannot put this model's attention into pages ({reason}); leave attention at sdpa.") from None
        project_places(model, axis=0)
        compiled = core.compile_model(model, "CPU", settings(options))
        names = [port.any_name for port in compiled.inputs]
        unknown = [name for name in names if name not in INPUTS and not name.startswith(CACHE)]
        if unknown:
            raise InfeasibleError(f"The paged graph takes inputs that are not supported ({', '.join(unknown)}); leave attention at sdpa.")
        self._takes = INPUTS & set(names)
        self._request: Any = compiled.create_infer_request()
        self._bound: list[Any] = []
        self.pages = tuple(_page(port) for port in compiled.inputs if port.any_name.startswith(CACHE))
        values = next(page for page in self.pages if page.name.startswith("value"))
        self.page_tokens: int = values.shape[1]
        """Tokens that a page holds; values have one row for each, keys may have rows for their scales beside them."""

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, all layers together."""
        return sum(page.size for page in self.pages)

    def infer(self, cache: PageCache, pieces: Sequence[Piece], places: Vectors) -> Logits:
        """Extends streams by new tokens.

        Args:
            cache: Holds their pages.
            pieces: Their pages have room for them.
            places: Positions among all new tokens, one stream after the other, that are projected onto the vocabulary.

        Returns:
            Logits at each place, in memory that the next call overwrites.
        """
        if self._bound is not cache.tensors:
            for page, tensor in zip(self.pages, cache.tensors, strict=True):
                self._request.set_tensor(page.name, tensor)
            self._bound = cache.tensors
        lengths = [len(tokens) for _, tokens in pieces]
        past = [stream.length for stream, _ in pieces]
        given = {
            "input_ids": np.array([token for _, tokens in pieces for token in tokens], np.int64),
            "position_ids": np.array([at for start, count in zip(past, lengths, strict=True) for at in range(start, start + count)], np.int64),
            "past_lens": np.array(past, np.int32),
            "subsequence_begins": np.cumsum([0, *lengths], dtype=np.int32),
            "block_indices": np.array([page for stream, _ in pieces for page in stream.pages], np.int32),
            "block_indices_begins": np.cumsum([0, *(len(stream.pages) for stream, _ in pieces)], dtype=np.int32),
            "max_context_len": np.array(max(map(sum, zip(past, lengths, strict=True))), np.int32),
            PLACES: places,
        }
        for name in self._takes:
            self._request.set_tensor(name, openvino.Tensor(given[name], shared_memory=True))
        self._request.infer(share_outputs=True)
        logits: Logits = self._request.get_tensor("logits").data
        return logits.reshape(len(places), -1)

    def read(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Reads one text from its beginning; yields the logits of consecutive parts of it, a row per token."""
        cache, stream = PageCache(self, len(ids)), Stream()
        for start in range(0, len(ids), SCORED):
            piece = ids[start : start + SCORED]
            cache.make_room(stream, len(piece))
            yield self.infer(cache, [Piece(stream, piece)], np.arange(len(piece), dtype=np.int64))
            stream.length += len(piece)


class PageCache:
    """Pages that streams take and give back.

    Args:
        model: Whose keys and values they hold.
        tokens: What there is room for at first; it doubles where that is too little. Pages that nobody has taken take no memory.
    """

    def __init__(self, model: PagedModel, tokens: int) -> None:
        self._model = model
        self._count = -(-tokens // model.page_tokens)
        self._free = list(range(self._count))
        self._reached = 0
        self._memory = self._allocated(self._count)
        self.tensors = self._tensors()

    @property
    def reached_bytes(self) -> int:
        """Bytes of the pages that were taken so far."""
        return self._reached * self._model.page_bytes

    def make_room(self, stream: Stream, tokens: int) -> None:
        """Gives a stream the pages for so many further tokens; the first free ones, so that those behind stay untouched."""
        needed = -(-(stream.length + tokens) // self._model.page_tokens) - len(stream.pages)
        for _ in range(needed):
            if not self._free:
                self._double()
            stream.pages.append(heapq.heappop(self._free))
            self._reached = max(self._reached, stream.pages[-1] + 1)

    def release(self, stream: Stream) -> None:
        """Takes back a stream's pages."""
        for page in stream.pages:
            heapq.heappush(self._free, page)
        stream.pages, stream.length = [], 0

    def _double(self) -> None:
        former, count = self._memory, self._count
        self._count = 2 * count
        self._memory = self._allocated(self._count)
        for old, new in zip(former, self._memory, strict=True):
            new[: len(old)] = old
        self._free = list(range(count, self._count))
        self.tensors = self._tensors()

    def _allocated(self, count: int) -> list[NDArray[np.uint8]]:
        return [np.zeros(count * page.size, np.uint8) for page in self._model.pages]

    def _tensors(self) -> list[Any]:
        shapes = [openvino.Shape([self._count, *page.shape]) for page in self._model.pages]
        return [openvino.Tensor(memory, shape, page.kind) for memory, shape, page in zip(self._memory, shapes, self._model.pages, strict=True)]


class PagedDecoder:
    """See `genopt.engines.decoding.CheckingDecoder`.

    Args:
        model: The model.
        slots: Most rows.
    """

    chunk = CHUNK

    def __init__(self, model: PagedModel, slots: int) -> None:
        self._model = model
        self._slots = slots
        self._rows: list[Stream] = []
        self._reading = Stream()
        self._cache = PageCache(model, 1)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the pages that its rows took."""
        return self._cache.reached_bytes

    def begin(self, rows: int, length: int) -> None:
        """See `Decoder.begin`; pages that nobody uses are replaced by as many as all rows of this length will take."""
        if not rows:
            self._cache, self._reading = PageCache(self._model, self._slots * length), Stream()
        self._cache.release(self._reading)

    def read(self, ids: Sequence[int]) -> Logits:
        """See `Decoder.read`."""
        last: Logits = self._extend([Piece(self._reading, ids)], [len(ids) - 1])[0]
        return last

    def add(self, rows: int) -> None:
        """See `Decoder.add`."""
        self._rows[rows:] = [self._reading]
        self._reading = Stream()

    def step(self, tokens: Sequence[int]) -> Logits:
        """See `Decoder.step`."""
        return self._extend([Piece(stream, (token,)) for stream, token in zip(self._rows, tokens, strict=True)], range(len(tokens)))

    def drop(self, row: int, rows: int) -> None:
        """See `Decoder.drop`."""
        self._cache.release(self._rows[row])
        self._rows[row] = self._rows[rows - 1]
        del self._rows[rows - 1 :]

    def check(self, tokens: Sequence[int]) -> Logits:
        """See `CheckingDecoder.check`."""
        logits = self._extend([Piece(self._rows[0], tokens)], range(len(tokens)))
        self._rows[0].length -= len(tokens)
        return logits

    def keep(self, count: int) -> None:
        """See `CheckingDecoder.keep`: what lies behind a stream's end in its pages is overwritten by what comes next."""
        self._rows[0].length += count

    def _extend(self, pieces: Sequence[Piece], places: Sequence[int]) -> Logits:
        for stream, tokens in pieces:
            self._cache.make_room(stream, len(tokens))
        logits = self._model.infer(self._cache, pieces, np.asarray(places, np.int64))
        for stream, tokens in pieces:
            stream.length += len(tokens)
        return logits


def _page(port: Any) -> Page:
    shape = tuple(int(size.get_length()) for size in list(port.get_partial_shape())[1:])
    kind = port.get_element_type()
    return Page(port.any_name, shape, kind, int(np.prod(shape)) * kind.bitwidth // 8)
