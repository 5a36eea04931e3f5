"""Checkpoints for vLLM whose weights llm-compressor has rounded with the help of calibration text, in an environment of its own.

- `gptq`: what rounding one weight costs is made good by those that are not rounded yet, as the inputs' second moments tell (Frantar et al.,
  "GPTQ", 2022).
- `awq`: weights that meet large activations are scaled up before they are rounded to the nearest, by what a search finds best (Lin et al.,
  "AWQ", 2023).
- `smoothquant`: outliers of the activations are moved into the weights, so that both can be rounded (Xiao et al., "SmoothQuant", 2022);
  then as `gptq`.
- `static`: weights are rounded to the nearest, and each matrix has one scale for all its activations, from their range on the text, which
  saves finding one while the model runs.

The head stays in the checkpoint's precision, as do the embeddings. `compressed_tensors` writes the same formats without calibration.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from genopt.errors import InfeasibleError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.calibration import calibration_pieces
from genopt.techniques.compressed_tensors import BITS, GROUPED, TRAIT, named_scheme, require_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Method = Literal["gptq", "awq", "smoothquant", "static"]
SCHEMES: Mapping[Method, tuple[str, ...]] = {
    "gptq": ("W4A16", "W8A16", "W8A8", "FP8_DYNAMIC"), "awq": ("W4A16", "W8A16"), "smoothquant": ("W8A8",), "static": ("FP8",),
}  # fmt: skip
"""What each method rounds to."""
CHANCES: Mapping[str, float] = {"W4A16": 0.4, "W8A16": 0.9, "W8A8": 0.6, "FP8_DYNAMIC": 0.6, "FP8": 0.5}
SMOOTHING = 0.8
"""Share of the outliers' range that moves into the weights, as llm-compressor's own recipes for W8A8 have it."""


class LlmCompressorParams(Record):
    """Parameters.

    Attributes:
        method: How weights are rounded.
        scheme: Bits of weights and activations, as compressed-tensors names them. Activations are rounded while the model runs.
        group_size: Consecutive weights that share a scale where activations stay as they are; else a row does.
        num_calibration_samples: Pieces of calibration text.
        max_seq_length: Tokens of each.
    """

    method: Method = "smoothquant"
    scheme: Literal["W4A16", "W8A16", "W8A8", "FP8_DYNAMIC", "FP8"] = "W8A8"
    group_size: Literal[32, 64, 128] = 128
    num_calibration_samples: int = Field(default=64, gt=0)
    max_seq_length: int = Field(default=512, ge=8)


class LlmCompressor(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "llmcompressor"
    version = 2
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({TRAIT, "quantized"})
    removes = frozenset({"hf"})
    needs_calibration = True
    gpu = "used"
    environment = "llmcompressor"

    @classmethod
    def check(cls, source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        chosen = parse_settings(LlmCompressorParams, params, cls.name)
        if chosen.scheme not in SCHEMES[chosen.method]:
            raise InfeasibleError(f"{chosen.method} does not round to {chosen.scheme}; choose one of {', '.join(SCHEMES[chosen.method])}.")

    @classmethod
    def footprint(cls, before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: each scale takes 16 bits."""
        chosen = parse_settings(LlmCompressorParams, params, cls.name)
        scales = 16 / chosen.group_size if chosen.scheme in GROUPED else 0.0
        return before.stored(BITS.get(chosen.scheme, 8.0) + scales, families=MATRICES).risked(CHANCES[chosen.scheme])

    @classmethod
    def apply(cls, source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`.

        Raises:
            DataError: The calibration text has no piece of that length.
        """
        from genopt.models.checkpoint import load_model, save_model
        from genopt.models.matrices import require_most

        chosen = parse_settings(LlmCompressorParams, params, cls.name)
        pieces = calibration_pieces(context.calibration, chosen.num_calibration_samples, chosen.max_seq_length)
        model = load_model(source)
        if chosen.scheme in GROUPED:
            require_groups(model, chosen.group_size)
        progress(f"rounding with {chosen.method} ({chosen.scheme}) on {len(pieces)} pieces of {chosen.max_seq_length} tokens")
        _compress(model, pieces, chosen)
        require_most(model, cls.name)  # llm-compressor takes the experts of some architectures apart, so that this is known afterwards
        save_model(model, source, destination)
        _leave_out_order(destination / "config.json")


def _compress(model: PreTrainedModel, pieces: list[list[int]], chosen: LlmCompressorParams) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot

    data = Dataset.from_dict({"input_ids": pieces, "attention_mask": [[1] * len(piece) for piece in pieces]})
    try:
        with _nothing_pinned():
            oneshot(
                model=model, dataset=data, recipe=_recipe(chosen), num_calibration_samples=len(pieces), max_seq_length=chosen.max_seq_length,
                shuffle_calibration_samples=False, pipeline="sequential",
            )  # fmt: skip
    except (ValueError, KeyError, NotImplementedError) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise InfeasibleError(f"llm-compressor cannot take this model ({cause}); use the technique compressed_tensors for it.") from error


def _recipe(chosen: LlmCompressorParams) -> list[Any]:
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    rounding = {"config_groups": {"group_0": named_scheme(chosen.scheme, chosen.group_size)}, "ignore": ["lm_head"]}
    if chosen.method == "awq":
        return [AWQModifier(), QuantizationModifier(**rounding)]
    if chosen.method == "smoothquant":
        return [SmoothQuantModifier(smoothing_strength=SMOOTHING), GPTQModifier(**rounding)]
    return [QuantizationModifier(**rounding) if chosen.method == "static" else GPTQModifier(**rounding)]


def _leave_out_order(path: Path) -> None:
    """GPTQ rounded columns in an order of its own and put them back, so readers need not know it; older ones refuse it for whole rows."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"]["actorder"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _nothing_pinned() -> Iterator[None]:
    """Without a GPU, AWQ of llm-compressor 0.14 still pins memory for copies to one, which PyTorch refuses."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    pins: Any = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = pins
