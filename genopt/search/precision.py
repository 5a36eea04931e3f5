"""Which module families keep more bits, from what rounding each of them costs. Pure arithmetic.

Costs of families add up, to first order: each is a small perturbation of the same function. So the least cost for a
size is a multiple-choice knapsack, which is solved exactly by joining one family after the other and keeping what nothing
beats (Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation", 1969).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from genopt.plan import Plan, Record
from genopt.search.space import ENGINE, Point, Space

FAMILIES = ("head", "qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""Families of matrices that share their bits: what engines fuse into one product belongs together."""
BITS = (8, 4)
"""Bits at which families are tried."""
TARGETS = (5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0)
"""Effective bits for which the best mixture is sought."""
ROUNDING = 1e-9
"""By how much effective bits may pass a target: sums in another order differ in their last digits."""
SCALE_BITS = 32
"""Of a block's scale."""


class Part(Record):
    """What rounding one part of a model costs, everything else left as it was.

    Attributes:
        name: A family, or the number of a decoder layer.
        kind: Which of both.
        weights: Elements of its matrices.
        kl: Mean divergence from the original's predictions in nats per token, by bits.
    """

    name: str
    kind: Literal["family", "layer"]
    weights: int = Field(gt=0)
    kl: dict[int, float]


class Sensitivity(Record):
    """How much each part of a model suffers from fewer bits.

    Attributes:
        parts: Families, then as many layers as there was time for.
        block_size: Weights that shared a scale.
        tokens: Tokens of calibration text that were compared.
    """

    parts: tuple[Part, ...]
    block_size: int
    tokens: int

    def families(self) -> tuple[Part, ...]:
        """The families that were tried at all bits."""
        return tuple(part for part in self.parts if part.kind == "family" and all(bits in part.kl for bits in BITS))


class Allocation(Record):
    """Bits by family.

    Attributes:
        bits: By family.
        effective_bits: Mean stored bits of a weight, with scales.
        kl: Predicted divergence.
    """

    bits: dict[str, int]
    effective_bits: float
    kl: float


def joined(found: Iterable[Sensitivity]) -> Sensitivity | None:
    """The parts of several passes over one model as one; None where there is none."""
    passes = list(found)
    if not passes:
        return None
    parts = sorted((part for one in passes for part in one.parts), key=_place)
    return passes[0].model_copy(update={"parts": tuple(parts)})


def _place(part: Part) -> tuple[bool, int]:
    return part.kind == "layer", int(part.name) if part.kind == "layer" else FAMILIES.index(part.name)


def stored_bits(bits: int, block_size: int) -> float:
    """Bits of a weight with its share of a scale."""
    return bits + SCALE_BITS / block_size


def unbeaten(parts: Sequence[Part], block_size: int) -> list[Allocation]:
    """All mixtures that no other is both smaller and closer than, the smallest first.

    Args:
        parts: Families with their costs at all bits.
        block_size: Weights that share a scale.
    """
    total = sum(part.weights for part in parts)
    found = [Allocation(bits={}, effective_bits=0.0, kl=0.0)]
    for part in parts:
        share = part.weights / total
        cost = {bits: (share * stored_bits(bits, block_size), part.kl[bits]) for bits in BITS}
        found = _front(
            Allocation(bits={**one.bits, part.name: bits}, effective_bits=one.effective_bits + size, kl=one.kl + kl)
            for one in found for bits, (size, kl) in cost.items()
        )  # fmt: skip
    return found


def _front(mixtures: Iterable[Allocation]) -> list[Allocation]:
    kept: list[Allocation] = []
    least = math.inf
    for one in sorted(mixtures, key=lambda one: (one.effective_bits, one.kl)):
        if one.kl < least:
            kept.append(one)
            least = one.kl
    return kept


def solve(found: Sensitivity, targets: Sequence[float] = TARGETS) -> list[Allocation]:
    """The mixture with the least predicted divergence for each target, each once, the smallest first.

    Args:
        found: What families suffer.
        targets: Most effective bits; a target that nothing meets is left out.
    """
    if {part.name for part in found.families()} != {part.name for part in found.parts if part.kind == "family"} or not found.families():
        return []
    mixtures = unbeaten(found.families(), found.block_size)
    chosen: list[Allocation] = []
    for target in sorted(targets):
        within = [one for one in mixtures if one.effective_bits <= target + ROUNDING]
        if within and within[-1] not in chosen:
            chosen.append(within[-1])
    return chosen


def among_seeds(seeds: Sequence[Point], space: Space, mixtures: Sequence[Allocation], bar: float) -> list[Point]:
    """Seeds, with mixtures as points between and behind them.

    Those expected to hold the bar come after the first seed, the smallest of them first; the others behind all seeds, the closest first, since
    each takes the time of one that may win.

    A likelihood is expected to lose what the divergence says, which is so on text as the original would write it.

    Args:
        seeds: What a search begins with.
        space: Whose techniques may express mixtures: those with a tunable for each family.
        mixtures: As `solve` gives them.
        bar: Least quality ratio.
    """
    holding = [one for one in mixtures if math.exp(-one.kl) >= bar]
    missing = [one for one in reversed(mixtures) if one not in holding]
    first, last = ([point for one in group for point in expressed(space, one.bits)] for group in (holding, missing))
    return [*seeds[:1], *first, *seeds[1:], *last]


def expressed(space: Space, bits: Mapping[str, int]) -> list[Point]:
    """The points that give families these bits: one per technique that can, on the first engine that it leads to."""
    found: list[Point] = []
    for owner in space.techniques:
        names = {tunable.family: f"{owner.name}.{tunable.name}" for tunable in owner.tunables if tunable.family}
        if not bits.keys() <= names.keys():
            continue
        wanted = {names[family]: count for family, count in bits.items()}
        for engine in space.engines:
            point = space.complete({ENGINE: engine.name, owner.name: True, **wanted})
            if all(point.get(name) == count for name, count in wanted.items()):
                found.append(point)
                break
    return found


def predicted_kl(space: Space, point: Point, found: Sensitivity) -> float:
    """What a point's choices of bits are expected to cost; 0 of points without such choices."""
    cost = {part.name: part.kl for part in found.families()}
    total = 0.0
    for owner in space.techniques:
        for tunable in owner.tunables:
            bits = point.get(f"{owner.name}.{tunable.name}")
            if tunable.family in cost and isinstance(bits, int):
                total += cost[tunable.family].get(bits, 0.0)
    return total


def tells_families(space: Space, wanted: Callable[[Plan], bool] = lambda _: True) -> bool:
    """Whether some wanted candidate of a space gives families bits of their own."""
    for owner in space.techniques:
        names = {f"{owner.name}.{tunable.name}" for tunable in owner.tunables if tunable.family}
        points = [space.complete({ENGINE: engine.name, owner.name: True}) for engine in space.engines] if names else []
        if any(names & point.keys() and wanted(space.plan(point)) for point in points):
            return True
    return False
