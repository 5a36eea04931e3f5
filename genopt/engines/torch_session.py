"""A language model opened in PyTorch."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from genopt.engines.attention import preferred
from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores
from genopt.engines.decoding import DecodingBatch
from genopt.engines.distribution import BLOCKS, Distributions, Wanted, require_rows
from genopt.engines.process_memory import process_memory
from genopt.engines.readback import Readback
from genopt.engines.rows import Row, require_fit
from genopt.engines.step_check import PROMPT, STEPS, require_alike
from genopt.engines.torch_decoder import Compiled, TorchDecoder, as_rows
from genopt.engines.torch_options import TorchOptions
from genopt.engines.torch_step import CompiledStep, step_cache
from genopt.errors import InfeasibleError
from genopt.models import products
from genopt.models.checkpoint import load_model
from genopt.models.inspect import context_of
from genopt.models.kv_cache import cache_size

SCORED_ROWS = 64
"""Rows of logits that are normalized at once in float32."""
CACHE_TOKENS: Mapping[str, int] = {"cpu": 512, "cuda": 1024}
"""Longest request that the compiled step serves, by kind of device, unless asked for otherwise."""
LOGIT_BYTES = 64 << 20
"""Most memory for logits as the model gives them; longer sequences are read in steps."""


class TorchSession:
    """See `genopt.engines.base.TextSession`.

    Args:
        folder: Hugging Face folder.
        options: Runtime options.

    Raises:
        InfeasibleError: The model keeps what it has read in a way of its own.
    """

    def __init__(self, folder: Path, options: TorchOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._model = load_model(folder, options.dtype)
        if "past_key_values" not in inspect.signature(self._model.forward).parameters:
            raise InfeasibleError(
                f"{type(self._model).__name__} takes no past_key_values to continue a text from; give a transformer with attention."
            )
        config = self._model.config.get_text_config(decoder=True)
        self._vocabulary: int = config.vocab_size
        longest = context_of(config.to_dict())
        self._context = min(longest, options.max_context or longest)
        self._step: CompiledStep | None = None
        self._held = cache_size(None)
        self._slow = products.are_slow_in(self._model)
        self._cache_tokens = min(options.cache_tokens or CACHE_TOKENS[self._device.type], self._context)
        self._attention = options.attention
        self._readback = Readback() if self._device.type == "cuda" else None
        if options.compile:
            self._cache = step_cache(self._model, self._cache_tokens)
            self._step = CompiledStep(self._model, self._decode, options.attention, frozen=self._device.type == "cpu")

    @property
    def model(self) -> PreTrainedModel:
        """The opened model; what is done to its weights shows in all that the session says next, unless it was compiled."""
        return self._model

    @property
    def _device(self) -> torch.device:
        return self._model.device

    def warm_up(self) -> None:
        """Compiles where that was asked for, and runs a request once.

        Raises:
            InfeasibleError: What was compiled computes something else than the model, or it is compiled anew for each token.
        """
        self.generate([GenerationRequest(prompt_ids=(0,) * min(8, self._context - 3), max_new_tokens=3)])
        if self._step is not None:
            self._check_step(self._step)

    @torch.inference_mode()
    def _check_step(self, step: CompiledStep) -> None:
        length = min(PROMPT + STEPS, self._cache_tokens)
        ids = torch.arange(length, device=self._device)[None] % self._vocabulary
        read = max(1, length - STEPS)
        self._cache.reset()
        with self._around(self._slow):
            expected = as_rows(self._model(input_ids=ids).logits[0, read:])
            self._model(input_ids=ids[:, :read], past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            with step.settings():
                found = [as_rows(logits)[0] for logits in step.follow(ids, read, self._cache)]
        if found:
            require_alike(np.stack(found), expected)

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        """See `TextSession.generate`.

        Raises:
            SpecError: A prompt with its answer is longer than the context, or has ids outside of the vocabulary.
        """
        started = time.monotonic_ns()
        for request in requests:
            self._check(request)
        rows = [Row(index, request) for index, request in enumerate(requests)]
        # Without compilation the model runs as users run it, slow or not.
        with self._around(self._slow and self._step is not None):
            self._run(rows, on_token)
        return [row.generation(started) for row in rows]

    def running_batch(self, slots: int) -> DecodingBatch | None:
        """See `Joinable.running_batch`; a compiled step on a GPU works ahead of the host, which a batch that others may join cannot."""
        if not TorchDecoder.takes(self._model) or (self._step is not None and self._readback is not None):
            return None
        compiled = None if self._step is None else Compiled(self._step, self._cache, self._cache_tokens, self._step.settings)
        decoder = TorchDecoder(self._model, compiled, lambda: self._around(self._slow and compiled is not None))
        return DecodingBatch(decoder, self._check)

    @contextmanager
    def _around(self, slow: bool) -> Iterator[None]:
        """Settings for all calls of the model."""
        with products.by_fp32(slow), preferred(self._attention):
            yield

    def _check(self, request: GenerationRequest) -> None:
        length = len(request.prompt_ids) + request.max_new_tokens
        require_fit(request.prompt_ids, length, context=self._context, vocabulary=self._vocabulary)

    def _run(self, rows: Sequence[Row], on_token: OnToken | None) -> None:
        if len(rows) == 1 and self._step is not None and _length(rows[0]) <= self._cache_tokens:
            self._run_compiled(rows[0], self._step, on_token)
        elif rows:
            self._run_eager(rows, on_token)

    def _decode(self, token: Tensor, position: Tensor, cache: StaticCache) -> tuple[Tensor, Tensor]:
        """The step that is compiled: one token in; float32 logits of the next one and the most probable token out."""
        output = self._model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True)
        logits: Tensor = output.logits[:, -1].float()
        return logits, logits.argmax(-1, keepdim=True)

    def _run_compiled(self, row: Row, step: CompiledStep, on_token: OnToken | None) -> None:
        """Eager prefill and compiled steps on the one static cache, whose tensors stay in place between requests."""
        self._cache.reset()
        prompt = torch.tensor([row.request.prompt_ids], device=self._device)
        positions = torch.arange(prompt.shape[1], device=self._device)[None]
        output = self._model(input_ids=prompt, position_ids=positions, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        row.take(as_rows(output.logits[:, -1])[0], on_token)
        token = torch.zeros((1, 1), dtype=torch.long, device=self._device)  # the same strides each time, or the step is compiled again
        position = torch.full_like(token, prompt.shape[1] - 1)
        with step.settings():
            if self._readback is not None and row.is_greedy:
                self._run_ahead(row, step, self._readback, token, position, on_token)
            while not row.finish_reason:
                token.fill_(row.tokens[-1])
                position += 1
                row.take(as_rows(step(token, position, self._cache)[0])[0], on_token)
        self._held = cache_size(self._cache)

    def _run_ahead(self, row: Row, step: CompiledStep, readback: Readback, token: Tensor, position: Tensor, on_token: OnToken | None) -> None:
        """Greedy steps, each begun before the host has read the token of the one before, so that the GPU never waits for it.

        One step in vain follows a token that ends the answer early.
        """

        def begin() -> int:
            position.add_(1)
            token.copy_(step(token, position, self._cache)[1])
            return readback.send(token)

        if row.finish_reason:
            return
        token.fill_(row.tokens[-1])
        current: int | None = begin()
        while current is not None and not row.finish_reason:
            following = begin() if len(row.tokens) + 1 < row.request.max_new_tokens else None
            row.accept(readback.take(current), on_token)
            current = following

    def _run_eager(self, rows: Sequence[Row], on_token: OnToken | None) -> None:
        """A batch, padded on the left; rows that have ended are computed on until all have."""
        longest = max(len(row.request.prompt_ids) for row in rows)
        ids = torch.zeros((len(rows), longest), dtype=torch.long, device=self._device)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, longest - len(row.request.prompt_ids) :] = torch.tensor(row.request.prompt_ids)
            mask[place, longest - len(row.request.prompt_ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        padded = bool((mask == 0).any())
        while True:
            output = self._model(
                input_ids=ids, attention_mask=mask if padded else None, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            _continue(rows, output.logits[:, -1], on_token)
            if all(row.finish_reason for row in rows):
                self._held = cache_size(cache)
                return
            ids = torch.tensor([[row.tokens[-1] if row.tokens else 0] for row in rows], device=self._device)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            positions = (positions[:, -1:] + 1).clamp(max=self._context - 1)  # tables of positions have none for rows that have ended

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """See `TextSession.score`.

        Raises:
            SpecError: A sequence is longer than the context, or has ids outside of the vocabulary.
        """
        for sequence in sequences:
            require_fit(sequence, len(sequence) - 1, context=self._context, vocabulary=self._vocabulary)
        with self._around(self._slow):
            return Scores.of([self._distributions(sequence, 0) for sequence in sequences])

    @torch.inference_mode()
    def distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        """See `TextSession.distributions`.

        Raises:
            SpecError: The sequence is longer than the context, or has ids outside of the vocabulary.
        """
        require_fit(sequence, len(sequence) - 1, context=self._context, vocabulary=self._vocabulary)
        if not isinstance(wanted, int):
            require_rows(wanted, len(sequence))
        with self._around(self._slow):
            return self._distributions(sequence, wanted)

    def _distributions(self, sequence: Sequence[int], wanted: Wanted) -> Distributions:
        ids = torch.tensor([sequence], device=self._device)
        places = wanted if isinstance(wanted, int) else torch.from_numpy(np.array(wanted, np.int64)).to(self._device)
        found: list[Distributions] = []
        done = 0
        for logits in self._logits(ids[:, :-1]):
            for rows in logits.split(SCORED_ROWS):
                part = slice(done, done + len(rows))
                found.append(_normalized(rows.float(), ids[0, 1:][part], places if isinstance(places, int) else places[part]))
                done += len(rows)
        return Distributions.joined(found)

    def _logits(self, ids: Tensor) -> Iterator[Tensor]:
        """Logits after each token; step by step with a key-value cache where those of a whole sequence would take too much memory."""
        rows = max(SCORED_ROWS, LOGIT_BYTES // (self._vocabulary * self._model.dtype.itemsize))
        if ids.shape[1] <= rows:
            yield self._model(input_ids=ids, use_cache=False).logits[0]
            return
        cache = DynamicCache(config=self._model.config)
        for piece, positions in zip(ids.split(rows, dim=1), torch.arange(ids.shape[1], device=self._device)[None].split(rows, dim=1), strict=True):
            yield self._model(input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True).logits[0]

    def memory(self) -> Memory:
        """See `TextSession.memory`."""
        found = process_memory(torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0)
        return found.model_copy(update={"kv_cache_bytes": self._held.bytes, "kv_bytes_per_token": self._held.bytes_per_token})

    def close(self) -> None:
        """See `TextSession.close`."""
        del self._model


def _continue(rows: Sequence[Row], logits: Tensor, on_token: OnToken | None) -> None:
    """Gives rows that have not ended their next token; greedy ones' are chosen on the device, as whole vocabularies take long to the host."""
    largest, likeliest = logits.max(-1)
    chosen = torch.where(largest.isfinite(), likeliest, -1).tolist()
    others = [place for place, row in enumerate(rows) if not row.finish_reason and (chosen[place] < 0 or not row.is_greedy)]
    brought = dict(zip(others, as_rows(logits[others]), strict=True)) if others else {}
    for place, row in enumerate(rows):
        if place in brought:
            row.take(brought[place], on_token)
        elif not row.finish_reason:
            row.accept(chosen[place], on_token)


def _normalized(rows: Tensor, targets: Tensor, wanted: int | Tensor) -> Distributions:
    """As `genopt.engines.distribution.distributions`, on the device."""
    total = rows.logsumexp(1, keepdim=True)
    ids = _largest(rows, min(wanted, rows.shape[1])) if isinstance(wanted, int) else wanted
    return Distributions(
        log_probs=as_rows((rows.gather(1, targets[:, None]) - total)[:, 0]), top_ids=rows.argmax(1).int().cpu().numpy(),
        ids=ids.int().cpu().numpy(), id_log_probs=as_rows(rows.gather(1, ids) - total),
    )  # fmt: skip


def _largest(rows: Tensor, count: int) -> Tensor:
    """As `genopt.engines.distribution.largest`: several times as fast as `topk` of a whole vocabulary."""
    if not count:
        return torch.empty((len(rows), 0), dtype=torch.long, device=rows.device)
    folds = -(-rows.shape[1] // BLOCKS)
    if folds <= count:
        return rows.topk(count).indices
    folded = torch.nn.functional.pad(rows, (0, folds * BLOCKS - rows.shape[1]), value=-torch.inf).view(len(rows), BLOCKS, folds)
    chosen = folded.amax(1).topk(count, sorted=False).indices
    places = (chosen[:, None] + folds * torch.arange(BLOCKS, device=rows.device)[None, :, None]).flatten(1)
    return places.gather(1, folded.flatten(1).gather(1, places).topk(count).indices)


def _length(row: Row) -> int:
    return len(row.request.prompt_ids) + row.request.max_new_tokens
