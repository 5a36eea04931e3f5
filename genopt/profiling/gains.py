"""What each family of remedies can bring at most, at each number of streams: the roofline asked "and if?". Pure."""

from __future__ import annotations

from typing import Literal

from genopt.plan import Record
from genopt.profiling.roofline import Ceilings
from genopt.search.footprint import HEAD, MATRICES, Footprint

FASTER_8_BIT = 2.0
"""8-bit products run twice as fast as 16-bit ones where the hardware has them (NVIDIA and Intel state twice the rate)."""
ENGINE = "a faster engine or a compiled step"
MATTERS = 1.1
"""A gain below this is not worth a try of its own."""

Limit = Literal["memory", "compute", "overhead"]


class Gain(Record):
    """A family of remedies at one number of streams.

    Attributes:
        remedy: What is done.
        family: Its name in `family_order`.
        streams: Streams that are decoded together.
        at_most: Speedup if it reached its limit: that of an engine against the step as it is, that of all else against a
            step without overhead, since overhead hides what fewer bytes and operations bring.
        bound: What bounds the step before it.
    """

    remedy: str
    family: str
    streams: int
    at_most: float
    bound: Limit


def gains(seconds: float, footprint: Footprint, ceilings: Ceilings, streams: tuple[int, ...]) -> tuple[Gain, ...]:
    """Gains at each number of streams, an engine's first, then the largest first.

    What a step takes beyond its limit with one stream is overhead, and stays the same with more of them.

    Args:
        seconds: One step of one stream, measured.
        footprint: What it reads and computes.
        ceilings: What the machine reaches.
        streams: Numbers of streams.
    """
    overhead = max(0.0, seconds - _limit(footprint, ceilings, 1))
    weights = (*MATRICES, HEAD)
    smaller = {
        ("4-bit weights", "quantization"): (footprint.stored(4.5, families=weights), 1.0),
        ("8-bit weights", "quantization"): (footprint.stored(8.0, families=weights), 1.0),
        ("8-bit weights and activations", "quantization"): (footprint.stored(8.0, families=weights), FASTER_8_BIT),
        ("half of the layers", "pruning"): (footprint.with_layers(footprint.layers / 2), 1.0),
    }
    found = []
    for count in streams:
        limit, bound = _limit(footprint, ceilings, count), _bound(footprint, ceilings, count, overhead)
        found.append(Gain(remedy=ENGINE, family="engine", streams=count, at_most=(limit + overhead) / limit, bound=bound))
        each = [
            Gain(remedy=remedy, family=family, streams=count, at_most=limit / _limit(after, ceilings, count, faster), bound=bound)
            for (remedy, family), (after, faster) in smaller.items()
        ]
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
    engine, rest = here[0], here[1:]
    bound = {"memory": "memory-bound", "compute": "compute-bound", "overhead": "bound by overhead"}[engine.bound]
    text = f"At {streams} {'stream' if streams == 1 else 'streams'} decoding is {bound}: "
    if engine.at_most >= MATTERS:
        text += f"{engine.remedy} at most {engine.at_most:.1f}×, and beyond it "
    useful = [f"{gain.remedy} at most {gain.at_most:.1f}×" for gain in rest if gain.at_most >= MATTERS]
    useless = [gain.remedy for gain in rest if gain.at_most < MATTERS]
    return text + (", ".join(useful) or "nothing") + (f"; {' and '.join(useless)} will not help." if useless else ".")
