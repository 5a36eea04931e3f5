"""The compiled denoiser of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from genopt.engines.attention import NO_KERNEL
from genopt.engines.plain_weights import PlainWeights
from genopt.engines.regions import Regions


class CompiledDenoiser:
    """A denoiser that is compiled as a whole when it first runs.

    Blocks that repeat are compiled once for all that are alike (`Regions`). Weights that torchao rounded are put together inside (`PlainWeights`), in
    batches that are not compiled, too. What cannot be compiled so is compiled with all else, and then with such weights as they are.

    Args:
        denoiser: The component of a pipeline.
        blocks: Those of its modules that repeat.
        graphs: Whether it is replayed as a CUDA graph.
    """

    def __init__(self, denoiser: Any, blocks: Sequence[nn.Module], *, graphs: bool) -> None:
        self._denoiser, self._graphs = denoiser, graphs
        self._regions, weights = Regions(blocks), PlainWeights(denoiser)
        self._regions.use()
        weights.use()
        self._plainer = [*([self._without_regions] if blocks else []), *([weights.end] if len(weights) else [])]
        """What is left to give up where compiling fails."""
        self._compiled = self._compile()

    def _compile(self) -> Any:
        """What compiles when it first runs; where blocks are regions in one piece, as it would run blocks eagerly rather than say that they are none.

        Without "max-autotune": on an H200 it took 18 minutes for the UNet of SDXL and 5 for half of FLUX.1, where compiling the blocks alone was done
        in 20 seconds and came within 2 % of it.
        """
        mode = "reduce-overhead" if self._graphs else None
        return torch.compile(self._denoiser, dynamic=False, mode=mode, fullgraph=len(self._regions) > 0)

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
            found = self._compiled(*arguments, **named)
        except torch.OutOfMemoryError:
            raise
        except (torch._dynamo.exc.TorchDynamoException, AssertionError, RuntimeError) as error:  # Dynamo lets assertions of its own through
            if not self._plainer or NO_KERNEL in str(error):
                raise
            self._plainer.pop(0)()
            self._compiled = self._compile()
            return self._run(arguments, named)
        self._plainer = []  # what fails from now on is not the compiler's
        return found

    def _without_regions(self) -> None:
        self._regions.end()
        self._regions = Regions(())
