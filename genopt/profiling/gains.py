"""What each family of remedies can bring at most, at each number of streams: the roofline asked "and if?". Pure."""

from __future__ import annotations

from typing import Literal

from genopt.plan import Record
from genopt.profiling.roofline import Ceilings
from genopt.search.footprint import HEAD, MATRICES, Footprint

FASTER_8_BIT = 2.0
"""8-bit products run twice as fast as 16-bit ones where the hardware has them (NVIDIA and Intel state twice the rate)."""
MATTERS = 1.1
"""A gain below this is not worth a try of its own."""

Limit = Literal["memory", "compute", "overhead"]


class Gain(Record):
    """A family of remedies at one number of streams.

    Attributes:
        remedy: What is done.
        family: Its name in `family_order`.
        streams: Streams that are decoded together.
        at_most: Speedup if it reached its limit and nothing else changed.
        bound: What bounds the step before it.
    """

    remedy: str
    family: str
    streams: int
    at_most: float
    bound: Limit


def gains(seconds: float, footprint: Footprint, ceilings: Ceilings, streams: tuple[int, ...]) -> tuple[Gain, ...]:
    """Gains at each number of streams, the largest first.

    What a step takes beyond its limit with one stream is overhead, and stays the same with more of them.

    Args:
        seconds: One step of one stream, measured.
        footprint: What it reads and computes.
        ceilings: What the machine reaches.
        streams: Numbers of streams.
    """
    overhead = max(0.0, seconds - _limit(footprint, ceilings, 1))
    found = []
    for count in streams:
        limit = _limit(footprint, ceilings, count)
        now = limit + overhead
        bound = _bound(footprint, ceilings, count, overhead)
        weights = (*MATRICES, HEAD)
        after = {
            ("a faster engine or a compiled step", "engine"): limit,
            ("8-bit weights", "quantization"): overhead + _limit(footprint.stored(8.0, families=weights), ceilings, count),
            ("4-bit weights", "quantization"): overhead + _limit(footprint.stored(4.5, families=weights), ceilings, count),
            ("8-bit weights and activations", "quantization"): overhead
            + _limit(footprint.stored(8.0, families=weights), ceilings, count, FASTER_8_BIT),
            ("half of the layers", "pruning"): overhead / 2 + _limit(footprint.with_layers(footprint.layers / 2), ceilings, count),
        }
        each = [Gain(remedy=remedy, family=family, streams=count, at_most=now / then, bound=bound) for (remedy, family), then in after.items()]
        found += sorted(each, key=lambda gain: -gain.at_most)
    return tuple(found)


def _limit(footprint: Footprint, ceilings: Ceilings, streams: int, faster: float = 1.0) -> float:
    return footprint.limit_s(ceilings.read_gb_s, faster * ceilings.matmul_gflop_s, streams)


def _bound(footprint: Footprint, ceilings: Ceilings, streams: int, overhead: float) -> Limit:
    limit = _limit(footprint, ceilings, streams)
    if limit < overhead:
        return "overhead"
    reads = footprint.limit_s(ceilings.read_gb_s, float("inf"), streams)
    return "memory" if reads >= limit else "compute"


def sentence(found: tuple[Gain, ...], streams: int) -> str:
    """The gains at one number of streams in words, for example "decoding is memory-bound at 1 stream: 4-bit weights at most 3.2×"."""
    here = [gain for gain in found if gain.streams == streams]
    if not here:
        return ""
    bound = {"memory": "memory-bound", "compute": "compute-bound", "overhead": "bound by overhead"}[here[0].bound]
    useful = [f"{gain.remedy} at most {gain.at_most:.1f}×" for gain in here if gain.at_most >= MATTERS]
    useless = [gain.remedy for gain in here if gain.at_most < MATTERS]
    text = f"At {streams} {'stream' if streams == 1 else 'streams'} decoding is {bound}: " + (", ".join(useful) or "nothing here helps")
    return text + (f"; {' and '.join(useless)} will not help." if useless else ".")
