"""Quantizes the weights of an ONNX Runtime GenAI model to 8 or 4 bits by rounding, block by block, without calibration."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from genopt.errors import InfeasibleError, StageError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import HEAD, MATRICES, MLP, PROJECTIONS, Footprint
from genopt.techniques.base import Progress, TransformContext
from genopt.techniques.onnx_embedding import shrink_embedding

Family = Literal["head", "down_proj", "up_proj", "gate_proj", "qkv_proj", "o_proj", "edge_layers"]

NODES: Mapping[str, str] = {
    "head": r"^/lm_head/",
    "down_proj": r"/mlp/down_proj/",
    "up_proj": r"/mlp/up_proj/",
    "gate_proj": r"/mlp/gate_proj/",
    "qkv_proj": r"/attn/(qkv|q|k|v)_proj/",
    "o_proj": r"/attn/o_proj/",
}
"""What the names of a family's nodes contain."""
FAMILIES = (*NODES, "edge_layers")
LAYER = re.compile(r"/layers\.(\d+)/")
SHARES: Mapping[str, Mapping[str, float]] = {
    "head": {HEAD: 1.0}, "down_proj": {MLP: 1 / 3}, "up_proj": {MLP: 1 / 3}, "gate_proj": {MLP: 1 / 3}, "qkv_proj": {PROJECTIONS: 0.6},
    "o_proj": {PROJECTIONS: 0.4},
}  # fmt: skip
"""About which share of a module family these nodes are, in models with a gated MLP and grouped queries."""
CHANCES: Mapping[int, float] = {4: 0.3, 8: 0.9}
"""How often rounding to these bits kept 99 % of the quality of small models."""
SMALL = 1024
"""Tensors below this many bytes stay in the graph file."""


class WeightOnlyParams(Record):
    """Parameters of the quantization.

    Attributes:
        bits: Bits of each weight.
        block_size: Consecutive weights that share one scale.
        symmetric: Without a zero point per block: slightly smaller and faster, less exact.
        keep: Families of matrices that stay at full precision; `edge_layers` are the first and last decoder layer.
    """

    bits: Literal[4, 8] = 8
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = False
    keep: tuple[Family, ...] = ()


class OnnxWeightOnly:
    """See `genopt.techniques.base.Transform`."""

    name = "onnx_weight_only"
    version = 1
    phase = 60
    requires = frozenset({"onnx_genai"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    removes: frozenset[str] = frozenset()
    needs_calibration = False
    accelerated = False

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        missing = [name for name in ("onnxruntime", "onnx", "onnx_ir") if importlib.util.find_spec(name) is None]
        if missing:
            raise InfeasibleError(f"The quantization needs {' and '.join(missing)}; install them with: pip install onnxruntime onnx onnx-ir.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: a block's scale is an fp32 number, its zero point as long as a weight."""
        chosen = parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        bits = chosen.bits + (32 + (0 if chosen.symmetric else chosen.bits)) / chosen.block_size
        kept: dict[str, float] = {}
        for name in chosen.keep:
            for family, share in _kept_shares(name, before.layers).items():
                kept[family] = min(1.0, kept.get(family, 0.0) + share)
        return before.stored(bits, families=(*MATRICES, HEAD), kept=kept).risked(CHANCES[chosen.bits])

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer

        chosen = parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        progress(f"quantizing to {chosen.bits} bits in blocks of {chosen.block_size}")
        model = onnx.load_model(str(source / "model.onnx"))
        names = [node.name for node in model.graph.node if node.op_type == "MatMul"]
        kept = kept_nodes(names, chosen.keep)
        if len(kept) == len(names):
            raise StageError("Nothing is left to quantize; keep fewer families at full precision.")
        logging.getLogger(matmul_nbits_quantizer.logger.name).setLevel(logging.WARNING)  # one line per matrix otherwise
        quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
            model, bits=chosen.bits, block_size=chosen.block_size, is_symmetric=chosen.symmetric, accuracy_level=4, nodes_to_exclude=kept,
            op_types_to_quantize=("MatMul",),
        )  # fmt: skip
        quantizer.process()
        quantized = quantizer.model.model
        shrink_embedding(quantized)
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith("model.onnx"):
                shutil.copyfile(path, destination / path.name)
        onnx.save_model(
            quantized, str(destination / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=SMALL
        )  # fmt: skip


def kept_nodes(names: Iterable[str], keep: Iterable[str]) -> list[str]:
    """The nodes among `names` that belong to the families in `keep`."""
    everything = list(names)
    layers = {name: int(found[1]) for name in everything if (found := LAYER.search(name))}
    patterns = [NODES[family] for family in keep if family in NODES]
    edges = {0, max(layers.values(), default=0)} if "edge_layers" in keep else set()
    return [name for name in everything if layers.get(name) in edges or any(re.search(pattern, name) for pattern in patterns)]


def _kept_shares(name: str, layers: float) -> Mapping[str, float]:
    """Shares of module families that stay at full precision."""
    return SHARES[name] if name in SHARES else dict.fromkeys(MATRICES, min(1.0, 2 / layers))
