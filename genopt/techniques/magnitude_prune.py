"""Sets the smallest weights of every decoder matrix to zero.

Unstructured sparsity, as in Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
2015. The engines here compute with zeros as with any other number, so it changes quality and not speed; it is in
the catalogue because people ask for it, and the report shows what it does.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import GpuUse, Progress, TransformContext


class MagnitudePruneParams(Record):
    """Parameters.

    Attributes:
        sparsity: Share of the weights of each matrix that become zero.
    """

    sparsity: float = Field(default=0.5, gt=0, lt=1)


class MagnitudePrune:
    """See `genopt.techniques.base.Transform`."""

    name = "magnitude_prune"
    version = 1
    phase = 20
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"sparse"})
    removes: frozenset[str] = frozenset()
    needs_calibration = False
    gpu: GpuUse = "unused"
    tunables: tuple[Tunable, ...] = ()
    environment: str | None = None

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(MagnitudePruneParams, params, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: zeros are read and multiplied like other numbers."""
        return before.risked(0.05)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import torch

        from genopt.models.checkpoint import load_model, save_model
        from genopt.models.decoder import decoder_layers

        sparsity = parse_settings(MagnitudePruneParams, params, cls.name).sparsity
        model = load_model(source)
        _, layers = decoder_layers(model)
        progress(f"setting {sparsity:.0%} of the decoder's weights to zero")
        with torch.no_grad():
            for weight in (module.weight for module in layers.modules() if isinstance(module, torch.nn.Linear)):
                magnitudes = weight.abs().float().flatten()
                smallest = magnitudes.argsort()[: round(sparsity * len(magnitudes))]
                weight.view(-1)[smallest] = 0
        save_model(model, source, destination)
