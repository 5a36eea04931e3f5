"""Products of one row of 8-bit integers on CPUs, as torch's compiler asks oneDNN for them."""

from __future__ import annotations

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph

VERSION = "genopt single rows 1"
"""Rises with what the pass does: it tells what was compiled with it from what was compiled otherwise."""
_INT_MM = torch.ops.aten._int_mm.default


class SingleRows(CustomGraphPass):
    """Has two equal rows multiplied instead of one, whose result is the first.

    The compiler gives a single row the stride 0, which says nothing where there is one row; with it oneDNN multiplies wrongly on processors with AMX
    (torch 2.13). All that a model with 8-bit activations wrote alone was noise there.
    """

    def __call__(self, graph: Graph) -> None:
        """Changes the graph of a compiled function, before it is lowered."""
        for product in graph.find_nodes(op="call_function", target=_INT_MM):
            rows, other = product.args
            if rows.meta["val"].shape[0] != 1:
                continue
            with graph.inserting_before(product):
                twice = graph.call_function(torch.ops.aten.cat.default, ([rows, rows], 0))
                both = graph.call_function(_INT_MM, (twice, other))
                first = graph.call_function(torch.ops.aten.slice.Tensor, (both, 0, 0, 1))
            value = product.meta["val"]
            with value.fake_mode:
                twice.meta["val"] = torch.cat([rows.meta["val"], rows.meta["val"]])
                both.meta["val"] = torch.cat([value, value])
                first.meta["val"] = value
            product.replace_all_uses_with(first)
            graph.erase_node(product)

    def uuid(self) -> str:
        """See `VERSION`."""
        return VERSION
