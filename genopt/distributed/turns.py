"""Whose turn it is among candidates that wait, and how many GPUs its build gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from genopt.plan import Plan


class Turn(NamedTuple):
    """Who is next.

    Attributes:
        plan: The candidate.
        share: How many GPUs its build may take.
    """

    plan: Plan
    share: int


def next_turn(
    waiting: Sequence[Plan], gains: Callable[[Plan], bool], *, promise: Callable[[Plan], float], estimate: Callable[[Plan], float], slots: int,
    taken: int, left_s: float,
) -> Turn:  # fmt: skip
    """The most promising one, but builds that gain from several GPUs come last: then they share all of them, and keep none from the others.

    Where the time does not suffice for all, they have their turn like the others, and one GPU each.

    Args:
        waiting: Those that wait, at least one; the first of equally promising ones first.
        gains: Whether a candidate's build gains from several GPUs.
        promise: What trying a candidate is worth.
        estimate: Expected seconds of a candidate on one slot.
        slots: How many candidates can be measured at once, each on a GPU where builds gain from several.
        taken: How many of them builds have that gain from several.
        left_s: Seconds from when the first slot is free until the last candidate must end.
    """
    others = [plan for plan in waiting if not gains(plan)]
    if not others:
        return Turn(max(waiting, key=promise), max(1, (slots - taken) // len(waiting)))
    last = [estimate(plan) for plan in waiting if gains(plan)]
    needed = sum(map(estimate, others)) / slots + max(sum(last) / slots, max(last, default=0.0))
    return Turn(max(others if needed <= left_s else waiting, key=promise), 1)
