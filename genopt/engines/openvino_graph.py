"""What all ways to run an exported decoder in OpenVINO share: reading its graph, and where it projects onto the vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13

from genopt.engines.openvino_options import GRAPH, WEIGHTS, OpenVinoOptions
from genopt.errors import InfeasibleError, StageError
from genopt.models.inspect import context_of

SCORED = 128
"""Positions that are projected onto the vocabulary at once, which bounds the memory of their logits."""
PLACES = "projected_places"

Logits = NDArray[np.float32]
Vectors = NDArray[np.int64]


class Graph(NamedTuple):
    """An exported decoder, not yet compiled.

    Attributes:
        vocabulary: Number of its token ids.
        context: Tokens that it was trained to hold.
        core: OpenVINO's entry point.
        model: The graph, which may be changed.
    """

    vocabulary: int
    context: int
    core: Any
    model: Any


def read_graph(folder: Path) -> Graph:
    """Reads an artifact with the trait `openvino`.

    Raises:
        StageError: The folder holds no such model, or one that OpenVINO cannot read.
    """
    if not (folder / GRAPH).is_file() or not (folder / WEIGHTS).is_file():
        raise StageError(f"{folder} has no {GRAPH} with {WEIGHTS}; export the model with the technique openvino first.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    core = openvino.Core()
    try:
        model = core.read_model(folder / GRAPH, folder / WEIGHTS)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:160]
        raise StageError(f"OpenVINO cannot read {folder / GRAPH} ({reason}); export the model again.") from None
    return Graph(int(config["vocab_size"]), context_of(config), core, model)


def settings(options: OpenVinoOptions) -> dict[str, Any]:
    """The options in OpenVINO's words. Threads are not pinned: which processors they may use is decided outside."""
    asked = {
        "INFERENCE_NUM_THREADS": options.threads, "INFERENCE_PRECISION_HINT": options.precision, "KV_CACHE_PRECISION": options.cache_type,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": options.activation_group,
    }  # fmt: skip
    fixed = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    return {**fixed, **{name: value for name, value in asked.items() if value is not None}}


def project_places(model: Any, *, axis: int) -> None:
    """Lets a graph project onto the vocabulary only the positions that a new input lists.

    Args:
        model: The graph, changed in place.
        axis: Of the positions in what is projected.

    Raises:
        InfeasibleError: Its logits do not come from a matrix product.
    """
    node = model.output("logits").get_node()
    while node.get_type_name() != "MatMul":
        following = next((port.get_node() for port in node.input_values() if port.get_node().get_type_name() != "Constant"), None)
        if following is None:
            raise InfeasibleError("The exported graph does not end in a projection onto the vocabulary; use another engine.")
        node = following
    places = opset13.parameter(openvino.PartialShape([-1]), openvino.Type.i64, name=PLACES)
    places.get_output_tensor(0).set_names({PLACES})
    gathered = opset13.gather(node.input_value(0), places, opset13.constant(axis, openvino.Type.i64))
    node.input(0).replace_source_output(gathered.output(0))
    model.add_parameters([places])
    model.validate_nodes_and_infer_types()
