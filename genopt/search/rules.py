"""Which techniques may follow each other: a fixed order of phases, and traits that artifacts carry. Never lists of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from genopt.plan import Plan, Record

ORIGINAL = frozenset({"hf"})
"""Traits of an original model."""


class Rule(Record):
    """What a technique asks of its source and makes of it; see `genopt.techniques.base.Transform`.

    Attributes:
        name: Catalogue name.
        phase: Steps are applied in the order of their phases; no two of a plan share one.
        requires: Traits that the source must carry.
        excludes: Traits that it must not carry.
        adds: Traits of the result besides the source's.
        removes: Traits of the source that the result no longer has.
    """

    name: str
    phase: int
    requires: frozenset[str] = frozenset()
    excludes: frozenset[str] = frozenset()
    adds: frozenset[str] = frozenset()
    removes: frozenset[str] = frozenset()

    def takes(self, traits: frozenset[str]) -> bool:
        """Whether an artifact with these traits can be its source."""
        return self.requires <= traits and not self.excludes & traits

    def after(self, traits: frozenset[str]) -> frozenset[str]:
        """Traits of its result."""
        return (traits - self.removes) | self.adds


class Declares(Protocol):
    """The part of a technique that the rules need."""

    name: str
    phase: int
    requires: frozenset[str]
    excludes: frozenset[str]
    adds: frozenset[str]
    removes: frozenset[str]


def rule_of(technique: Declares) -> Rule:
    """The rule that a technique declares."""
    return Rule(
        name=technique.name, phase=technique.phase, requires=technique.requires, excludes=technique.excludes, adds=technique.adds,
        removes=technique.removes,
    )  # fmt: skip


def reaches(rules: Sequence[Rule], traits: frozenset[str], phase: int, accepts: frozenset[str]) -> bool:
    """Whether some of the rules, each after the phase before, lead from `traits` to what an engine accepts.

    Args:
        rules: In the order of their phases.
        traits: Of the artifact so far.
        phase: Of the step that made it; 0 for an original.
        accepts: Traits of which the engine takes any.
    """
    if accepts & traits:
        return True
    for place, rule in enumerate(rules):
        if rule.phase > phase and rule.takes(traits) and reaches(rules[place + 1 :], rule.after(traits), rule.phase, accepts):
            return True
    return False


def objection(plan: Plan, rules: Sequence[Rule], accepts: frozenset[str], original: frozenset[str] = ORIGINAL) -> str:
    """Why a plan's steps do not fit together, in a few words; an empty text where they do.

    Args:
        plan: The plan.
        rules: Of its steps, in their order.
        accepts: What its engine takes.
        original: Traits of the model that it begins with.
    """
    traits, phase = original, 0
    for rule in rules:
        if rule.phase <= phase:
            return f"{rule.name} must come before what precedes it"
        if not rule.takes(traits):
            missing, barred = sorted(rule.requires - traits), sorted(rule.excludes & traits)
            return f"{rule.name} takes nothing that is {', '.join(barred)}" if barred else f"{rule.name} takes only what is {', '.join(missing)}"
        traits, phase = rule.after(traits), rule.phase
    return "" if accepts & traits else f"{plan.engine} opens only what is {' or '.join(sorted(accepts))}"
