"""What a candidate writes by itself: length, repetition, its end, and whether it is text at all.

Likelihood is measured on given text; a model can pass it and still break off, run on or loop. A few continuations
cannot rank two healthy models, so a check fails only where the difference is both large and surely there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from pydantic import JsonValue

from genopt.engines.base import Generates, GenerationRequest
from genopt.measure.statistics import LEVEL, Array, student_quantile
from genopt.plan import Record

NEW_TOKENS = 32
"""Most new tokens per continuation."""
TEMPERATURE, TOP_P = 0.8, 0.95
LENGTH_SHARE = 0.9
"""Generated length below this share of the original's is anomalous: truncated output fakes speed (MLPerf Inference rules)."""
GRAM = 4
"""Tokens of the pieces whose repetition is counted."""
MORE_REPETITION, MORE_UNENDED, MORE_INVALID = 0.1, 0.25, 0.1
"""How much more of each, as a share, than the original's is anomalous where it is sure."""

Decode = Callable[[Sequence[int]], str]


class Continuation(Record):
    """New tokens, and whether the model ended by itself."""

    token_ids: tuple[int, ...]
    ended: bool


class Continuations(Record):
    """A greedy and a sampled continuation of each prompt, in the order of the prompts."""

    greedy: tuple[Continuation, ...]
    sampled: tuple[Continuation, ...]

    @property
    def all(self) -> tuple[Continuation, ...]:
        """The greedy ones, then the sampled ones."""
        return self.greedy + self.sampled


def continuations(session: Generates, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], seed: int) -> Continuations:
    """Lets a model continue prompts, all at once; the same seed samples with the same random numbers."""
    requests = [
        GenerationRequest(
            prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, stop_token_ids=tuple(stop_ids), temperature=temperature, top_p=top_p,
            seed=seed + place,
        )
        for temperature, top_p in ((0.0, 1.0), (TEMPERATURE, TOP_P)) for place, prompt in enumerate(prompts)
    ]  # fmt: skip
    found = tuple(Continuation(token_ids=one.token_ids, ended=one.finish_reason == "stop") for one in session.generate(requests))
    return Continuations(greedy=found[: len(prompts)], sampled=found[len(prompts) :])


def check(original: Continuations, candidate: Continuations, decode: Decode) -> tuple[dict[str, JsonValue], str | None]:
    """Compares a candidate's continuations with the original's of the same prompts.

    Args:
        original: The original's.
        candidate: The candidate's.
        decode: Text of token ids.

    Returns:
        What was found, and a phrase about what is wrong, if anything is.
    """
    ours, theirs = candidate.all, original.all
    lengths, their_lengths = (np.array([float(len(one.token_ids)) for one in side]) for side in (ours, theirs))
    repeated, their_repeated = (np.array([repetition(one.token_ids) for one in side]) for side in (ours, theirs))
    ended, their_ended = (np.array([float(one.ended) for one in side]) for side in (ours, theirs))
    invalid, their_invalid = (np.array([float(not is_text(one.token_ids, decode)) for one in side]) for side in (ours, theirs))
    share = float(lengths.sum() / their_lengths.sum()) if their_lengths.any() else None
    facts: dict[str, JsonValue] = {
        "continuations": len(ours), "length_share": share, "repetition": float(repeated.mean()),
        "repetition_original": float(their_repeated.mean()), "ended": float(ended.mean()), "ended_original": float(their_ended.mean()),
        "invalid_utf8": float(invalid.mean()), "invalid_utf8_original": float(their_invalid.mean()), "same_greedy_tokens": _same(original, candidate),
    }  # fmt: skip
    if share is not None and share < LENGTH_SHARE and surely_above(their_lengths - lengths, 0.0):
        return facts, f"it writes {100 * share:.0f}% of the original's length, and truncated output fakes speed"
    if surely_above(repeated - their_repeated, MORE_REPETITION):
        return facts, f"it repeats itself: {100 * repeated.mean():.0f}% of its phrases, the original {100 * their_repeated.mean():.0f}%"
    if surely_above(their_ended - ended, MORE_UNENDED):
        return facts, f"it runs on: {ended.sum():.0f} of {len(ours)} continuations ended by themselves, {their_ended.sum():.0f} of the original's"
    if surely_above(invalid - their_invalid, MORE_INVALID):
        return facts, f"{invalid.sum():.0f} of {len(ours)} continuations are not valid UTF-8, {their_invalid.sum():.0f} of the original's"
    return facts, None


def repetition(ids: Sequence[int]) -> float:
    """Share of a continuation's pieces of `GRAM` tokens that it has had before; 0 where it is too short to repeat one."""
    grams = [tuple(ids[place : place + GRAM]) for place in range(len(ids) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_text(ids: Sequence[int], decode: Decode) -> bool:
    """Whether tokens spell valid UTF-8; a last character that was cut off by the limit does not count against them."""
    return "\ufffd" not in decode(ids).rstrip("\ufffd")


def surely_above(differences: Array, margin: float) -> bool:
    """Whether paired differences exceed a margin on average, and the 95 % t interval of that average is above zero."""
    mean, count = float(differences.mean()), len(differences)
    if mean <= margin or count < 2:
        return False
    return mean - student_quantile(LEVEL, count - 1) * float(differences.std(ddof=1)) / math.sqrt(count) > 0


def _same(original: Continuations, candidate: Continuations) -> float | None:
    """Share of the original's greedy tokens that the candidate writes too before it first writes another."""
    shared = 0
    for theirs, ours in zip(original.greedy, candidate.greedy, strict=True):
        pairs = list(zip(theirs.token_ids, ours.token_ids, strict=False))
        shared += next((place for place, (one, other) in enumerate(pairs) if one != other), len(pairs))
    total = len(list(chain.from_iterable(one.token_ids for one in original.greedy)))
    return shared / total if total else None
