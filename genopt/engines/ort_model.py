"""A decoder in ONNX Runtime GenAI's format, run on a plain ONNX Runtime session.

One session prefills, decodes and scores, so that what is judged is what serves and the weights are in
memory once. The key-value cache is ours: numpy arrays that the attention operator reads and extends in
place. Prompts run row by row, without padding, in chunks that bound the memory of their logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genopt.errors import InfeasibleError, StageError
from genopt.plan import Record

CHUNK = 128
"""Prompt tokens per run: as fast as longer ones, with a quarter of the logits of 512."""
PAST, PRESENT = "past_key_values", "present"
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Logits = NDArray[np.float32]


class DecoderShape(Record):
    """What the folder's `genai_config.json` says about the model."""

    context: int
    vocabulary: int
    heads: int
    head_size: int


def read_shape(folder: Path) -> DecoderShape:
    """Reads the dimensions of an exported model.

    Raises:
        StageError: The folder holds no such model.
        InfeasibleError: Its attention cannot extend a cache in place.
    """
    path = folder / "genai_config.json"
    if not path.is_file():
        raise StageError(f"{folder} has no genai_config.json; export the model with the technique onnx_genai first.")
    config = json.loads(path.read_text(encoding="utf-8"))
    if not config["search"].get("past_present_share_buffer", False):
        raise InfeasibleError(f"The attention of model type {config['model']['type']!r} has no cache that grows in place; use another engine.")
    decoder = config["model"]["decoder"]
    return DecoderShape(
        context=config["model"]["context_length"], vocabulary=config["model"]["vocab_size"], heads=decoder["num_key_value_heads"],
        head_size=decoder["head_size"],
    )  # fmt: skip


class OrtModel:
    """The session and what it takes to call it.

    Args:
        folder: Folder with `model.onnx` and `genai_config.json`.
        threads: Threads of each operator, or None for one per core.
        spin: Let idle threads wait in a loop, which is faster while the cores are free.

    Raises:
        StageError: The folder holds no such model.
        InfeasibleError: The model takes inputs that this engine does not know.
    """

    def __init__(self, folder: Path, *, threads: int | None, spin: bool) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        self.shape = read_shape(folder)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads or 0
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        self._ort: Any = onnxruntime
        self._session: Any = onnxruntime.InferenceSession(str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"])
        types = {item.name: item.type for item in self._session.get_inputs()}
        self._cache_types = {name: NUMPY_TYPES.get(kind) for name, kind in types.items() if name.startswith(PAST)}
        unknown = sorted(set(types) - set(self._cache_types) - {"input_ids", "attention_mask"})
        if unknown or None in self._cache_types.values() or self._session.get_outputs()[0].type != "tensor(float)":
            raise InfeasibleError(f"The export's inputs or types are not supported ({', '.join(unknown) or 'cache or logits'}); use another engine.")
        self._logits = np.empty((1, CHUNK, self.shape.vocabulary), np.float32)

    def cache(self, rows: int, length: int) -> dict[str, NDArray[Any]]:
        """An empty cache for `rows` sequences of up to `length` tokens; untouched pages take no memory."""
        size = (rows, self.shape.heads, length, self.shape.head_size)
        return {name: np.zeros(size, kind) for name, kind in self._cache_types.items()}

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token of one sequence."""
        return sum(self.shape.heads * self.shape.head_size * np.dtype(kind).itemsize for kind in self._cache_types.values() if kind is not None)

    def bind(self, cache: dict[str, NDArray[Any]], first: int, count: int) -> Any:
        """An IO binding whose cache is `count` rows from `first`, in place."""
        binding = self._session.io_binding()
        for name, values in cache.items():
            value = self._ort.OrtValue.ortvalue_from_numpy(values[first : first + count])
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(PRESENT + name.removeprefix(PAST), value)
        return binding

    def value(self, array: NDArray[Any]) -> Any:
        """An ONNX Runtime value on the memory of an array."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    def run(self, binding: Any) -> None:
        """Runs what is bound."""
        self._session.run_with_iobinding(binding)

    def read(self, ids: Sequence[int], cache: dict[str, NDArray[Any]], row: int) -> Iterator[Logits]:
        """Feeds a sequence from its beginning into one row of the cache.

        Yields:
            Logits of each chunk, one row per token; valid until the next chunk.
        """
        binding = self.bind(cache, row, 1)
        for start in range(0, len(ids), CHUNK):
            yield self.extend(binding, ids[start : start + CHUNK], start)

    def extend(self, binding: Any, ids: Sequence[int], start: int) -> Logits:
        """Feeds at most `CHUNK` further tokens into the one row of a binding, after the `start` that it has.

        Returns:
            Logits, one row per token; valid until the next call.
        """
        piece = np.array([ids], np.int64)
        mask = np.ones((1, start + len(ids)), np.int64)
        logits = self._logits[:, : len(ids)]
        binding.bind_ortvalue_input("input_ids", self.value(piece))
        binding.bind_ortvalue_input("attention_mask", self.value(mask))
        binding.bind_ortvalue_output("logits", self.value(logits))
        self.run(binding)
        read: Logits = logits[0]
        return read


class OrtDecoder:
    """See `genopt.engines.decoding.CheckingDecoder`.

    The attention mask has the cache's full length from the start; its count of ones says how far each row
    is. So all inputs and outputs are bound once, and a step only writes into them. Where other rows advance, a prompt is
    read into a spare row behind them, since rows move when one of them ends.

    Args:
        model: The model.
        slots: Most rows.
    """

    chunk = CHUNK

    def __init__(self, model: OrtModel, slots: int) -> None:
        self._model = model
        self._slots = slots
        self._cache: dict[str, NDArray[Any]] = {}
        self._length = 0
        self._mask = np.zeros((slots, 0), np.int64)
        self._ids = np.zeros((slots, 1), np.int64)
        self._logits = np.empty((slots, 1, model.shape.vocabulary), np.float32)
        self._filled = np.zeros(slots, np.int64)
        self._binding: Any = None
        self._reading: Any = None
        self._first: Any = None
        self._place = self._read = 0

    @property
    def kv_bytes(self) -> int:
        """Bytes that its cache has room for; pages of it that no token has reached take no memory."""
        return sum(values.nbytes for values in self._cache.values())

    def begin(self, rows: int, length: int) -> None:
        """See `Decoder.begin`; a cache that is too short, or that nobody uses, is replaced."""
        if length > self._length or not rows:
            self._replace(rows, length)
        self._place, self._read = (self._slots if rows else 0), 0
        self._reading = self._model.bind(self._cache, self._place, 1)

    def _replace(self, rows: int, length: int) -> None:
        former, self._cache = self._cache, {}
        if not rows:
            former = {}  # its memory is free before there is another
        cache = self._model.cache(self._slots + (self._slots > 1), length)
        mask = np.zeros((self._slots, length), np.int64)
        if rows:
            mask[:rows, : self._length] = self._mask[:rows]
        for name, values in former.items():
            for row, filled in enumerate(self._filled[:rows]):  # only what is filled, so that the rest still takes no memory
                cache[name][row, :, :filled] = values[row, :, :filled]
        self._cache, self._mask, self._length = cache, mask, length
        self._binding = self._first = None

    def read(self, ids: Sequence[int]) -> Logits:
        """See `Decoder.read`."""
        logits = self._model.extend(self._reading, ids, self._read)
        self._read += len(ids)
        last: Logits = logits[-1]
        return last

    def add(self, rows: int) -> None:
        """See `Decoder.add`."""
        if self._place != rows:
            for values in self._cache.values():
                values[rows, :, : self._read] = values[self._place, :, : self._read]
        self._mask[rows] = np.arange(self._length) < self._read
        self._filled[rows] = self._read
        self._binding = self._reading = None

    def step(self, tokens: Sequence[int]) -> Logits:
        """See `Decoder.step`."""
        rows = len(tokens)
        if self._binding is None:
            self._binding = self._bind(rows)
        self._ids[:rows, 0] = tokens
        self._mask[np.arange(rows), self._filled[:rows]] = 1
        self._filled[:rows] += 1
        self._model.run(self._binding)
        logits: Logits = self._logits[:rows, 0]
        return logits

    def check(self, tokens: Sequence[int]) -> Logits:
        """See `CheckingDecoder.check`."""
        if self._first is None:
            self._first = self._model.bind(self._cache, 0, 1)
        return self._model.extend(self._first, tokens, int(self._filled[0]))

    def keep(self, count: int) -> None:
        """See `CheckingDecoder.keep`: what lies behind a row's end in the cache is overwritten by what comes next."""
        self._mask[0, self._filled[0] : self._filled[0] + count] = 1
        self._filled[0] += count

    def drop(self, row: int, rows: int) -> None:
        """See `Decoder.drop`."""
        if row != rows - 1:
            length = self._filled[rows - 1]
            for values in self._cache.values():
                values[row, :, :length] = values[rows - 1, :, :length]
            self._mask[row], self._filled[row] = self._mask[rows - 1], length
        self._binding = None

    def _bind(self, rows: int) -> Any:
        binding = self._model.bind(self._cache, 0, rows)
        binding.bind_ortvalue_input("input_ids", self._model.value(self._ids[:rows]))
        binding.bind_ortvalue_input("attention_mask", self._model.value(self._mask[:rows]))
        binding.bind_ortvalue_output("logits", self._model.value(self._logits[:rows]))
        return binding
