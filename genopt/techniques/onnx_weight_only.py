"""Quantizes the weights of an ONNX Runtime GenAI model by rounding, block by block, without calibration; each family has its own bits."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from genopt.errors import InfeasibleError, StageError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import HEAD, MLP, PROJECTIONS, Footprint
from genopt.search.precision import FAMILIES
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext
from genopt.techniques.onnx_embedding import shrink_embedding

Bits = Literal[4, 8, 32]
"""Of a weight; 32 leaves it as it was exported."""
FULL = 32
NODES: Mapping[str, str] = {
    "head": r"^/lm_head/",
    "qkv_proj": r"/attn/(qkv|q|k|v)_proj/",
    "o_proj": r"/attn/o_proj/",
    "gate_up_proj": r"/mlp/(gate|up|gate_up)_proj/",
    "down_proj": r"/mlp/down_proj/",
}
"""What the names of a family's nodes contain."""
LAYER = re.compile(r"/layers\.(\d+)/")
SHARES: Mapping[str, tuple[str, float]] = {
    "head": (HEAD, 1.0), "qkv_proj": (PROJECTIONS, 0.6), "o_proj": (PROJECTIONS, 0.4), "gate_up_proj": (MLP, 2 / 3), "down_proj": (MLP, 1 / 3),
}  # fmt: skip
"""About which share of a module family these matrices are, in models with a gated MLP and grouped queries."""
CHANCES: Mapping[int, float] = {4: 0.3, 8: 0.9}
"""How often rounding all weights to these bits kept 99 % of the quality of small models."""
SMALL = 1024
"""Tensors below this many bytes stay in the graph file."""


class WeightOnlyParams(Record):
    """Parameters of the quantization: bits of each weight by family, and how they are rounded.

    Attributes:
        head: Bits of the matrix that makes logits.
        qkv_proj: Of the projections to queries, keys and values.
        o_proj: Of the projection out of the attention.
        gate_up_proj: Of the projections into the MLP.
        down_proj: Of the projection out of it.
        edge_layers: Least bits within the first and the last decoder layer; None treats them as the others.
        block_size: Consecutive weights that share one scale.
        symmetric: Without a zero point per block: slightly smaller and faster, less exact.
    """

    head: Bits = 8
    qkv_proj: Bits = 8
    o_proj: Bits = 8
    gate_up_proj: Bits = 8
    down_proj: Bits = 8
    edge_layers: Literal[8, 32] | None = None
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = False

    def by_family(self) -> dict[str, int]:
        """Bits outside of the edge layers, by family."""
        return {"head": self.head, "qkv_proj": self.qkv_proj, "o_proj": self.o_proj, "gate_up_proj": self.gate_up_proj, "down_proj": self.down_proj}

    def stored_bits(self, bits: int) -> float:
        """Bits with their share of a block's scale, an fp32 number, and of its zero point, as long as a weight."""
        return float(bits) if bits == FULL else bits + (32 + (0 if self.symmetric else bits)) / self.block_size


def uniform(bits: Bits) -> dict[str, JsonValue]:
    """Parameters that give every family the same bits."""
    return dict.fromkeys(FAMILIES, bits)


class OnnxWeightOnly(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "onnx_weight_only"
    version = 2
    phase = 60
    requires = frozenset({"onnx_genai"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"quantized"})
    tunables = (
        Tunable(name="block_size", choices=(32, 16, 64, 128), words=("g32", "g16", "g64", "g128")),
        Tunable(name="symmetric", choices=(False, True), words=("asym", "sym")),
        Tunable(name="head", choices=(8, 4, FULL), words=("", "head4", "head32"), family="head"),
        Tunable(name="qkv_proj", choices=(8, 4), words=("", "qkv4"), family="qkv_proj"),
        Tunable(name="o_proj", choices=(8, 4), words=("", "o4"), family="o_proj"),
        Tunable(name="gate_up_proj", choices=(8, 4), words=("", "gate_up4"), family="gate_up_proj"),
        Tunable(name="down_proj", choices=(8, 4, FULL), words=("", "down4", "down32"), family="down_proj"),
        Tunable(
            name="edge_layers", choices=(None, 8), words=("", "edges8"),
            when=(("qkv_proj", 4), ("o_proj", 4), ("gate_up_proj", 4), ("down_proj", 4)),
        ),
    )  # fmt: skip

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        missing = [name for name in ("onnxruntime", "onnx", "onnx_ir") if importlib.util.find_spec(name) is None]
        if missing:
            raise InfeasibleError(f"The quantization needs {' and '.join(missing)}; install them with: pip install onnxruntime onnx onnx-ir.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        chosen = parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        edges = min(1.0, 2 / before.layers)
        bits: dict[str, float] = {}
        chance = 1.0
        for family, inside in chosen.by_family().items():
            module, share = SHARES[family]
            at_edges = max(inside, chosen.edge_layers or 0) if family != "head" else inside
            stored = (1 - edges) * chosen.stored_bits(inside) + edges * chosen.stored_bits(at_edges)
            bits[module] = bits.get(module, 0.0) + share * stored
            chance *= CHANCES.get(inside, 1.0) ** (1 / len(FAMILIES))
        found = before
        for module, stored in bits.items():
            found = found.stored(stored, families=(module,))
        return found.risked(chance)

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import onnx

        chosen = parse_settings(WeightOnlyParams, params, "onnx_weight_only")
        model = onnx.load_model(str(source / "model.onnx"))
        bits = node_bits([node.name for node in model.graph.node if node.op_type == "MatMul"], chosen)
        if set(bits.values()) <= {FULL}:
            raise StageError("Nothing is left to quantize; give at least one family fewer than 32 bits.")
        progress(f"quantizing to {' and '.join(f'{count} bits' for count in sorted(set(bits.values()) - {FULL}))} in blocks of {chosen.block_size}")
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith("model.onnx"):
                shutil.copyfile(path, destination / path.name)
        quantized = quantize(model, bits, chosen)
        shrink_embedding(quantized)
        onnx.save_model(
            quantized, str(destination / "model.onnx"), save_as_external_data=True, location="model.onnx.data", size_threshold=SMALL
        )  # fmt: skip


def quantize(model: Any, bits: Mapping[str, int], params: WeightOnlyParams) -> Any:
    """Rounds matrices of a graph, once for each number of bits.

    Args:
        model: The `onnx.ModelProto`.
        bits: Of each matrix product, by name of its node.
        params: Blocks and zero points.
    """
    from onnxruntime.quantization import matmul_nbits_quantizer

    logging.getLogger(matmul_nbits_quantizer.logger.name).setLevel(logging.WARNING)  # one line per matrix otherwise
    for count in sorted(set(bits.values()) - {FULL}):
        quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
            model, bits=count, block_size=params.block_size, is_symmetric=params.symmetric, accuracy_level=4,
            nodes_to_exclude=[name for name, wanted in bits.items() if wanted != count], op_types_to_quantize=("MatMul",),
        )  # fmt: skip
        quantizer.process()
        model = quantizer.model.model
    return model


def node_bits(names: Iterable[str], params: WeightOnlyParams) -> dict[str, int]:
    """Bits of each matrix product, by name of its node; what belongs to no family gets 8."""
    everything = list(names)
    layers = {name: int(matched[1]) for name in everything if (matched := LAYER.search(name))}
    edges = {0, max(layers.values(), default=0)}
    wanted = params.by_family()
    found: dict[str, int] = {}
    for name in everything:
        family = next((family for family, pattern in NODES.items() if re.search(pattern, name)), None)
        bits = wanted[family] if family is not None else 8
        found[name] = max(bits, params.edge_layers or 0) if layers.get(name) in edges else bits
    return found
