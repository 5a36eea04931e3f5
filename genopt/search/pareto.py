"""The Pareto front."""

from __future__ import annotations

from collections.abc import Mapping


def front(points: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Names of the points that no other point dominates, in the order given.

    A point dominates another when it is at least as large in every coordinate and larger in one; equal points
    do not dominate each other.

    Args:
        points: Coordinates by name, all of them larger-is-better and equally many.
    """
    return [name for name, point in points.items() if not any(_dominates(other, point) for other in points.values())]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
