"""Whether a candidate decodes as it scores: what it writes greedily must be what its own scores prefer.

Quality is judged by what a model says of given text. Decoding runs other code: kernels for single rows, a cache, a compiled step. Where that code
errs, the likelihood does not show it, and text of the right length need not either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import JsonValue

from genopt.engines.base import Distributes, GenerationRequest, TextSession
from genopt.quality.generation import NEW_TOKENS, Continuation

MOST_REGRET = 0.1
"""Nats per token. Rounding makes thousandths (0.003 at most in six engines and formats of SmolLM2), and tokens that have little to do with the scores
lose several."""


def check_decoding(
    session: TextSession, prompts: Sequence[Sequence[int]], batched: Sequence[Continuation], stop_ids: Sequence[int]
) -> tuple[dict[str, JsonValue], str | None]:
    """Scores what a candidate chose greedily: in a batch, and the longest of it once more alone, as engines decode a single stream in another way.

    Args:
        session: The candidate.
        prompts: Token ids of each.
        batched: Its greedy continuations of them.
        stop_ids: What ends one.

    Returns:
        The regrets, and a phrase about what is wrong, if anything is.
    """
    longest = prompts[int(np.argmax([len(one.token_ids) for one in batched]))]
    request = GenerationRequest(prompt_ids=tuple(longest), max_new_tokens=NEW_TOKENS, stop_token_ids=tuple(stop_ids))
    alone = [Continuation(token_ids=one.token_ids, ended=one.finish_reason == "stop") for one in session.generate([request])]
    found = {
        "greedy_regret": greedy_regret(session, prompts, batched, stop_ids),
        "greedy_regret_alone": greedy_regret(session, [longest], alone, stop_ids),
    }  # fmt: skip
    facts: dict[str, JsonValue] = {name: value if value is None or np.isfinite(value) else None for name, value in found.items()}
    for where, value in zip(("in a batch", "alone"), found.values(), strict=True):
        if value is not None and not value <= MOST_REGRET:  # also where it is no number
            return facts, f"it decodes {where} other than it scores: its greedy tokens are {value:.2f} nats each less likely than its likeliest ones"
    return facts, None


def greedy_regret(session: Distributes, prompts: Sequence[Sequence[int]], written: Sequence[Continuation], stop_ids: Sequence[int]) -> float | None:
    """How much less likely than the likeliest token the chosen ones are, by the writer's own scores: their mean in nats.

    Args:
        session: Who wrote.
        prompts: Token ids of each.
        written: Greedy continuations of them; the choice to end one counts like a token, which is the likeliest of those that end.
        stop_ids: What ends one.

    Returns:
        0 or more; None where nothing was chosen.
    """
    regrets: list[float] = []
    for prompt, one in zip(prompts, written, strict=True):
        ends = [(*one.token_ids, stop) for stop in stop_ids] if one.ended else [one.token_ids]
        choices = [_regrets(session, prompt, chosen) for chosen in ends if chosen]
        if choices:
            likeliest: list[float] = min(choices, key=lambda found: found[-1])
            regrets.extend(likeliest)
    return float(np.mean(regrets)) if regrets else None


def _regrets(session: Distributes, prompt: Sequence[int], chosen: Sequence[int]) -> list[float]:
    found = session.distributions((*prompt, *chosen), 1)
    regrets: list[float] = (found.id_log_probs[:, 0] - found.log_probs)[-len(chosen) :].astype(float).tolist()
    return regrets
