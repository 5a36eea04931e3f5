"""An engine session as lm-evaluation-harness sees it, so that its tasks judge what would be served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from genopt.engines.base import WRITTEN_AFTER_TEXT, GenerationRequest, TextSession
from genopt.models.text_prefix import fitted, unbegun
from genopt.quality.task_scoring import Text

BATCH = 8
"""Requests that are handed to the engine at a time."""
NEW_TOKENS = 256
"""Most new tokens where a task does not say."""


class SessionLM(TemplateLM):
    """See `lm_eval.api.model.TemplateLM`.

    Args:
        session: Opens the model; called when it is first asked.
        text: Its tokenizer.
        context: Tokens that the model can hold.
        stop_ids: End-of-sequence tokens; the first one also stands for an empty context where the tokenizer has no prefix.
    """

    def __init__(self, session: Callable[[], TextSession], text: Text, context: int, stop_ids: Sequence[int]) -> None:
        super().__init__()
        self._session, self._text, self._context, self._stop_ids = session, text, context, tuple(stop_ids)
        self._readable = context - WRITTEN_AFTER_TEXT

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._stop_ids[0] if self._stop_ids else 0

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: what the tokenizer begins a text with, if anything."""
        return self._text.prefix[-1] if self._text.prefix else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model can read."""
        return self._readable

    @property
    def max_gen_toks(self) -> int:
        """Most new tokens where a task does not say."""
        return min(NEW_TOKENS, self._context // 2)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_options: Any) -> list[int]:
        """Token ids behind the tokenizer's prefix; without it where the harness says so, as for an answer that it puts behind a context."""
        return self._text.encode(string, add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would write it; contexts are cut on the left, behind the prefix."""
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), BATCH):
            batch = [
                (fitted(context + answer, self._readable, self._text.prefix), len(answer))
                for _, context, answer in requests[start : start + BATCH]
            ]  # fmt: skip
            scores = self._session().score([ids for ids, _ in batch])
            for (ids, count), log_probs, tops in zip(batch, scores.log_probs, scores.top_ids, strict=True):
                count = min(count, len(log_probs))
                found.append((float(sum(log_probs[-count:])), list(tops[-count:]) == ids[-count:]))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in pieces that fit the context; behind the prefix each begins with the last token of the one before."""
        return [sum(self._piece(*piece) for piece in self._pieces(request.args[0])) for request in requests]

    def _pieces(self, text: str) -> list[tuple[list[int], list[int]]]:
        """What each piece begins with, and what is scored of it."""
        prefix = list(self._text.prefix)
        ids = unbegun(self._text.encode(text, False), prefix)
        before = prefix or [self.eot_token_id]
        first, step = self._readable - len(before), self._readable - len(prefix) - 1
        later = [([*prefix, ids[start - 1]], ids[start : start + step]) for start in range(first, len(ids), step)]
        return [(before, ids[:first]), *later]

    def _piece(self, before: list[int], ids: list[int]) -> float:
        return float(sum(self._session().score([before + ids]).log_probs[0][-len(ids) :])) if ids else 0.0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first of a task's stop strings; sampled only where the task asks for it."""
        found: list[str] = []
        for start in range(0, len(requests), BATCH):
            batch = requests[start : start + BATCH]
            asked = [self._asked(*request.args) for request in batch]
            for (_, stops), answer in zip(asked, self._session().generate([request for request, _ in asked]), strict=True):
                text = self._text.decode(answer.token_ids)
                found.append(min((text.partition(stop)[0] for stop in stops), key=len, default=text))
        return found

    def _asked(self, context: str, options: dict[str, Any]) -> tuple[GenerationRequest, list[str]]:
        until = options.get("until") or []
        new = min(int(options.get("max_gen_toks", self.max_gen_toks)), self._context - 1)
        ids = fitted(self._text.encode(context, True), self._context - new, self._text.prefix) or [self.eot_token_id]
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        request = GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=new, stop_token_ids=self._stop_ids, temperature=temperature)
        return request, [until] if isinstance(until, str) else [stop for stop in until if stop]
