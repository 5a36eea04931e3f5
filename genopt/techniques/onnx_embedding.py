"""Stores the input embedding of an ONNX model in 16 bits where that loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

TABLE = "genopt.embed_tokens.weight"


def shrink_embedding(model: Any) -> bool:
    """Replaces the fp32 table that `input_ids` index by a bf16 or fp16 one, if every value survives.

    Checkpoints are mostly bf16, so that half of an fp32 table is zeros. A table that something else reads
    too (a tied head at full precision) stays.

    Args:
        model: The `onnx.ModelProto`, changed in place.

    Returns:
        Whether the table was replaced.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    gather = next((node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"), None)
    if gather is None:
        return False
    transpose = next((node for node in graph.node if node.op_type == "Transpose" and node.output[0] == gather.input[0]), None)
    source = transpose.input[0] if transpose is not None else gather.input[0]
    stored = next((tensor for tensor in graph.initializer if tensor.name == source), None)
    readers = sum(list(node.input).count(name) for node in graph.node for name in {source, gather.input[0]})
    if stored is None or stored.data_type != TensorProto.FLOAT or readers != (1 if transpose is None else 2):
        return False
    values = numpy_helper.to_array(stored)
    table = np.ascontiguousarray(values.T if transpose is not None else values)
    if not (table.view(np.uint32) & 0xFFFF).any():
        kind, raw = TensorProto.BFLOAT16, (table.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    elif np.array_equal(half := table.astype(np.float16), table):
        kind, raw = TensorProto.FLOAT16, half.tobytes()
    else:
        return False
    graph.initializer.append(helper.make_tensor(TABLE, kind, table.shape, raw, raw=True))
    graph.initializer.remove(stored)
    if transpose is not None:
        graph.node.remove(transpose)
    output, gathered = gather.output[0], gather.output[0] + "/16bit"
    gather.input[0], gather.output[0] = TABLE, gathered
    cast = helper.make_node("Cast", [gathered], [output], name=gather.name + "/Cast", to=TensorProto.FLOAT)
    graph.node.insert(list(graph.node).index(gather) + 1, cast)
    return True
