"""Sets the smallest weights of every decoder matrix to zero, wherever they are or two of every four.

Unstructured sparsity as in Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015, and 2:4
sparsity as in Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021. The engines here compute with zeros as with
any other number, so it changes quality and not speed; it is in the catalogue because people ask for it, and the report
shows what it does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from genopt.errors import InfeasibleError, SpecError
from genopt.models.experts import refuse_experts
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.smallest import zero_smallest, zero_two_of_four

SPARSITY = 0.5
"""Of the pattern 2:4."""


class MagnitudePruneParams(Record):
    """Parameters.

    Attributes:
        sparsity: Share of the weights of each matrix that become zero.
        pattern: Whether they are chosen from the whole matrix, or two of every four neighbours, which sparse tensor cores need; half of
            the weights then, so a row's rest that is no whole four stays.
    """

    sparsity: float = Field(default=0.5, gt=0, lt=1)
    pattern: Literal["unstructured", "2:4"] = "unstructured"


class MagnitudePrune(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "magnitude_prune"
    version = 4
    phase = 20
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"sparse"})

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        chosen = parse_settings(MagnitudePruneParams, params, cls.name)
        if chosen.pattern != "unstructured" and chosen.sparsity != SPARSITY:
            raise SpecError(f"The pattern {chosen.pattern} of magnitude_prune is a sparsity of {SPARSITY}; leave `sparsity` out.")
        refuse_experts(source, cls.name)

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: zeros are read and multiplied like other numbers."""
        return before.risked(0.05)

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import torch

        from genopt.models.checkpoint import load_model, save_model
        from genopt.models.matrices import by_layer, outputs_by_inputs, require_most

        chosen = parse_settings(MagnitudePruneParams, params, cls.name)
        model = load_model(source)
        progress(f"setting {chosen.sparsity:.0%} of the decoder's weights to zero ({chosen.pattern})")
        matrices = [outputs_by_inputs(module) for layer in by_layer(model) for module in layer]
        if not matrices:
            raise InfeasibleError("The model's decoder has no matrix that magnitude_prune knows; leave it out with --exclude magnitude_prune.")
        require_most(model, cls.name)
        with torch.no_grad():
            for weight in matrices:
                if chosen.pattern == "unstructured":
                    zero_smallest(weight, round(chosen.sparsity * weight.numel()))
                else:
                    zero_two_of_four(weight)
        save_model(model, source, destination)
