"""The compiled denoiser of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch._dynamo.exc
from torch import nn

from genopt.engines.compile_forms import Forms
from genopt.engines.plain_weights import PlainWeights
from genopt.engines.regions import Regions


class CompiledDenoiser:
    """A denoiser that is compiled as a whole when it first runs, and for each size of images anew.

    PyTorch does so for eight of them (`torch._dynamo.config.recompile_limit`); it runs as it is for others, so that these get images, too.

    Blocks that repeat are compiled once for all that are alike (`Regions`). Weights that torchao rounded are put together inside (`PlainWeights`), in
    batches that are not compiled, too.

    Args:
        denoiser: The component of a pipeline.
        blocks: Those of its modules that repeat.
        graphs: Whether it is replayed as a CUDA graph.
    """

    def __init__(self, denoiser: Any, blocks: Sequence[nn.Module], *, graphs: bool) -> None:
        self._denoiser, self._graphs = denoiser, graphs
        self._forms = Forms(Regions(blocks), PlainWeights(denoiser))
        self._forms.use()
        self._compile()

    def _compile(self) -> None:
        """Has it compiled when it runs next; with regions in one piece, as it would run blocks eagerly rather than say that they are none.

        Without "max-autotune": on an H200 it took 18 minutes for the UNet of SDXL and 5 for half of FLUX.1, where compiling the blocks alone was done
        in 20 seconds and came within 2 % of it.
        """
        mode = "reduce-overhead" if self._graphs else None
        self._compiled = torch.compile(self._denoiser, dynamic=False, mode=mode, fullgraph=self._forms.has_regions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """See the denoiser's own call; what a graph returns is copied, as its next replay overwrites it, and schedulers still look at it."""
        if not self._graphs:
            return self._run(arguments, named)
        torch.compiler.cudagraph_mark_step_begin()
        found = self._run(arguments, named)
        return tuple(part.clone() for part in found) if isinstance(found, tuple) else type(found)(found.sample.clone())

    def _run(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            return self._forms.run(lambda: self._compiled(*arguments, **named), again=self._compile)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            return self._denoiser(*arguments, **named)
