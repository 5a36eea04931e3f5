"""What one unit of work must read and compute, and how transforms change that. Pure arithmetic, no measurement.

A unit is a decode step of one stream for text, a denoising step for images. Techniques say how they change a
footprint (`Transform.footprint`), so that a candidate's speed can be predicted before it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydantic import Field

from genopt.plan import Record

PROJECTIONS = "attention projections"
ATTENTION = "attention core"
MLP = "MLP"
NORMALISATION = "normalisation"
HEAD = "embedding and head"
OTHER = "other layers"

MATRICES = (PROJECTIONS, MLP)
"""Families of the matrices that repeat with every layer."""
REPEATED = (PROJECTIONS, ATTENTION, MLP, NORMALISATION)
"""Families that every layer has."""


class Part(Record):
    """One module family's share of a unit of work.

    Attributes:
        weights: Weights that every token reads, in elements.
        routed: Those of all experts, of which each token reads only some.
        active: Share of the experts that one token goes through.
        bits: Stored bits of each, with scales and zero points.
        operations: Floating-point operations of one token; a multiplication and an addition are two.
    """

    weights: float = Field(default=0.0, ge=0)
    routed: float = Field(default=0.0, ge=0)
    active: float = Field(default=1.0, ge=0, le=1)
    bits: float = Field(default=16.0, gt=0)
    operations: float = Field(default=0.0, ge=0)

    @property
    def bytes(self) -> float:
        """Bytes that are read for one token."""
        return self.bytes_of(1)

    def bytes_of(self, streams: int) -> float:
        """Bytes that are read for one token of each stream; tokens choose their experts independently."""
        return (self.weights + self.routed * (1 - (1 - self.active) ** streams)) * self.bits / 8


class Footprint(Record):
    """One unit of work of one stream.

    Attributes:
        parts: By module family.
        state_bytes: What is read of the stream's own state, such as its KV cache.
        layers: Repeated blocks; what runs once per block costs the host as many times.
        chance: How likely the output quality still holds the bar, from experience; 1 where nothing changed.
    """

    parts: dict[str, Part]
    state_bytes: float = Field(default=0.0, ge=0)
    layers: float = Field(default=1.0, gt=0)
    chance: float = Field(default=1.0, ge=0, le=1)

    def limit_s(self, read_gb_s: float, gflop_s: float, streams: int = 1) -> float:
        """The least time of one unit for all streams together; reading and arithmetic overlap.

        Weights are read once, of the experts those that any stream goes through, and all else is read per stream.

        Args:
            read_gb_s: Read bandwidth of the machine.
            gflop_s: Its rate of matrix products.
            streams: Streams that share the unit.
        """
        read = sum(part.bytes_of(streams) for part in self.parts.values()) + streams * self.state_bytes
        computed = streams * sum(part.operations for part in self.parts.values())
        return max(read / (1e9 * read_gb_s), computed / (1e9 * gflop_s))

    def stored(self, bits: float, *, families: tuple[str, ...] | None = None, kept: Mapping[str, float] = MappingProxyType({})) -> Footprint:
        """With weights in another format.

        Args:
            bits: New bits per weight.
            families: Which families change; None changes all.
            kept: Share of a family's weights that stays as it is.
        """
        parts = {
            name: part.model_copy(update={"bits": kept.get(name, 0.0) * part.bits + (1 - kept.get(name, 0.0)) * bits})
            if families is None or name in families else part
            for name, part in self.parts.items()
        }  # fmt: skip
        return self.model_copy(update={"parts": parts})

    def with_layers(self, layers: float) -> Footprint:
        """With fewer of the repeated blocks."""
        share = layers / self.layers
        parts = {name: _scaled(part, share) if name in REPEATED else part for name, part in self.parts.items()}
        return self.model_copy(update={"parts": parts, "layers": layers, "state_bytes": share * self.state_bytes})

    def narrowed(self, share: float, families: tuple[str, ...]) -> Footprint:
        """With that share of some families' weights, and of the state where attention is one of them."""
        parts = {name: _scaled(part, share) if name in families else part for name, part in self.parts.items()}
        state = share * self.state_bytes if ATTENTION in families else self.state_bytes
        return self.model_copy(update={"parts": parts, "state_bytes": state})

    def risked(self, chance: float) -> Footprint:
        """After a step that keeps the quality with this chance."""
        return self.model_copy(update={"chance": self.chance * chance})


def _scaled(part: Part, share: float) -> Part:
    return part.model_copy(update={name: share * getattr(part, name) for name in ("weights", "routed", "operations")})
