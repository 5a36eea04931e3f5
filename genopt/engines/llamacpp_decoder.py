"""Rows of a cache of llama.cpp that requests join and leave, and guesses that are checked in one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genopt.engines.llamacpp_model import CHUNK, LlamaCppCache, LlamaCppModel
from genopt.engines.rows import Logits
from genopt.errors import StageError


class LlamaCppDecoder:
    """See `genopt.engines.decoding.CheckingDecoder`.

    Each row is the sequence of its number, since the library computes those together that have no gap between them. A prompt is read
    into the sequence behind the rows; it moves where rows end meanwhile.

    Args:
        model: The model.
        slots: Most rows.
    """

    chunk = CHUNK

    def __init__(self, model: LlamaCppModel, slots: int) -> None:
        self._model = model
        self.slots = slots
        self._held: LlamaCppCache | None = None
        self._filled: list[int] = [0] * slots
        self._place = self._read = 0

    @property
    def kv_tokens(self) -> int:
        """Tokens that its cache has room for."""
        return self._held.tokens * self._held.sequences if self._held is not None else 0

    @property
    def _cache(self) -> LlamaCppCache:
        if self._held is None:
            raise StageError("llama.cpp had no room for the cache that the last requests need; open the session again.")
        return self._held

    def begin(self, rows: int, length: int) -> None:
        """See `Decoder.begin`; a cache that is too short is replaced."""
        if self._held is None or length > self._held.tokens:
            former, self._held = self._held, None
            if not rows:
                former = None  # its memory is free before there is another
            self._held = LlamaCppCache(self._model, length, self.slots)
            if former is not None:
                for row in range(rows):
                    former.copy(row, self._held, row)
        self._held.forget(rows)
        self._place, self._read = rows, 0

    def read(self, ids: Sequence[int]) -> Logits:
        """See `Decoder.read`."""
        logits: Logits = self._extend(ids, last=True)[0]
        return logits

    def read_text(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Reads a text where no row is; yields the logits at each token in pieces, valid until the next one."""
        self.begin(0, len(ids))
        for start in range(0, len(ids), CHUNK):
            yield self._extend(ids[start : start + CHUNK], last=False)

    def _extend(self, ids: Sequence[int], *, last: bool) -> Logits:
        places = range(self._read, self._read + len(ids))
        self._read = places.stop
        return self._cache.run(ids, places, [self._place] * len(ids), last=last)

    def add(self, rows: int) -> None:
        """See `Decoder.add`."""
        if self._place != rows:
            self._cache.copy(self._place, self._cache, rows)
        self._filled[rows] = self._read

    def step(self, tokens: Sequence[int]) -> Logits:
        """See `Decoder.step`."""
        rows = range(len(tokens))
        logits = self._cache.run(tokens, self._filled[: len(tokens)], rows)
        for row in rows:
            self._filled[row] += 1
        return logits

    def check(self, tokens: Sequence[int]) -> Logits:
        """See `CheckingDecoder.check`."""
        start = self._filled[0]
        return self._cache.run(tokens, range(start, start + len(tokens)), [0] * len(tokens))

    def keep(self, count: int) -> None:
        """See `CheckingDecoder.keep`."""
        self._filled[0] += count
        self._cache.forget(0, self._filled[0])

    def drop(self, row: int, rows: int) -> None:
        """See `Decoder.drop`."""
        if row != rows - 1:
            self._cache.copy(rows - 1, self._cache, row)
            self._filled[row] = self._filled[rows - 1]
