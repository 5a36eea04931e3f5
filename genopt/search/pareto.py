"""The Pareto front, and the volume below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


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


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume of what the points dominate above a reference point, by slicing along the last coordinate.

    Args:
        points: Larger is better in each coordinate; what is below the reference counts nothing.
        reference: The corner from which the volume is measured.
    """
    above = [tuple(point) for point in points if all(value > least for value, least in zip(point, reference, strict=True))]
    if not above:
        return 0.0
    if len(reference) == 1:
        return max(value - reference[0] for (value,) in above)
    total = 0.0
    levels = sorted({point[-1] for point in above}, reverse=True)
    for level, below in zip(levels, [*levels[1:], reference[-1]], strict=True):
        slice_of = {point[:-1] for point in above if point[-1] >= level}
        kept = front({str(place): point for place, point in enumerate(slice_of)})
        listed = list(slice_of)
        total += (level - below) * hypervolume([listed[int(place)] for place in kept], reference[:-1])
    return total
