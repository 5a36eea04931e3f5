"""The compiled decode step of a language model in PyTorch, and the settings under which it runs fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch._dynamo.exc
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Module
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from genopt.engines.attention import Kernels
from genopt.engines.compile_forms import Forms
from genopt.engines.plain_weights import PlainWeights
from genopt.engines.regions import Regions
from genopt.engines.single_rows import SingleRows
from genopt.errors import InfeasibleError
from genopt.models.decoder import decoder_layers

Decode = Callable[[Tensor, Tensor, StaticCache], tuple[Tensor, Tensor]]
"""Token, position and cache in, logits and the greedy choice out."""
NO_MEMORY = ("out of memory", "can't allocate memory")
"""What PyTorch says where it found no room, also while it compiles."""
ANEW = "PyTorch compiles the decode step of this model anew for each token; leave compile out."


def step_cache(model: PreTrainedModel, tokens: int) -> StaticCache:
    """A cache for one sequence, whose tensors stay in place.

    Layers with a window keep everything, too, and the mask leaves out what is behind the window: transformers' own layer for them counts tokens in
    Python, so that each position would be compiled anew.

    Args:
        model: Whose keys and values it holds.
        tokens: How many it has room for.
    """
    cache = StaticCache(config=model.config, max_cache_len=tokens)
    cache.layers = [StaticLayer(tokens) if type(layer) is StaticSlidingWindowLayer else layer for layer in cache.layers]
    return cache


class CompiledStep:
    """A decode step, compiled when it first runs.

    On CPUs it is compiled as a whole: freezing lays the weights out for their kernels, and takes them for constants: 8.3 instead of 13.6 ms per
    token in matrix products of a 135M model.

    On GPUs, layers that are alike are compiled once (`Regions`), and all of them are one CUDA graph. Weights that torchao rounded are put together
    inside (`PlainWeights`). Tuning by coordinate descent turns products with one row into reductions that read weights at the memory's speed
    (Inductor, decomposition.py): 6.5 instead of 7.6 ms per token of an 8B model on an H100, and 6.3 ms with plain attention.

    Plain attention, which Inductor fuses, takes the place of the kernel made for prompts, which cost 6.6 ms on a CPU with a cache of 512 tokens.

    Args:
        model: Whose step it is.
        decode: The step.
        attention: Kernels that were asked for; None takes plain attention.
        frozen: Whether weights are constants, as on CPUs.
    """

    def __init__(self, model: PreTrainedModel, decode: Decode, attention: Kernels | None, *, frozen: bool) -> None:
        self._model = model
        self._plain = attention is None
        self._setting = "freezing" if frozen else "coordinate_descent_tuning"
        self._rows = SingleRows() if model.device.type == "cpu" else None
        self._forms = Forms() if frozen else Forms(Regions(_layers(model)), PlainWeights(model))
        self._step: Decode = torch.compile(decode, fullgraph=True, dynamic=False, mode=None if frozen else "reduce-overhead")

    def __call__(self, token: Tensor, position: Tensor, cache: StaticCache) -> tuple[Tensor, Tensor]:
        """Runs it, within `settings`.

        Raises:
            InfeasibleError: PyTorch cannot compile it, or has compiled it so often that it does so no more.
        """
        try:
            return self._forms.run(lambda: self._step(token, position, cache))
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            raise InfeasibleError(ANEW) from None
        except torch._dynamo.exc.TorchDynamoException as error:
            if any(words in str(error) for words in NO_MEMORY):
                raise
            cause = str(error).strip().splitlines()[0]
            raise InfeasibleError(f"PyTorch cannot compile this model's decode step ({type(error).__name__}: {cause}); leave compile out.") from error

    def follow(self, ids: Tensor, start: int, cache: StaticCache) -> Sequence[Tensor]:
        """Logits after each token of a text, within `settings`; the cache holds those before `start`.

        Raises:
            InfeasibleError: The last step had to be compiled, though others ran before it: so would each one after it, until PyTorch refuses to.
        """
        token = torch.zeros((1, 1), dtype=torch.long, device=ids.device)  # the same strides each time, or the step is compiled again
        found: list[Tensor] = []
        graphs = 0
        for place in range(start, ids.shape[1]):
            graphs = counters["stats"]["unique_graphs"]
            found.append(self(token.fill_(ids[0, place]), torch.full_like(token, place), cache)[0].clone())
        if len(found) > 1 and counters["stats"]["unique_graphs"] > graphs:
            raise InfeasibleError(ANEW)
        return found

    @contextmanager
    def settings(self) -> Iterator[None]:
        """All must hold whenever the step may be compiled."""
        usual = self._model.config._attn_implementation
        if self._plain:
            self._model.set_attn_implementation("eager")
        self._forms.use()
        try:
            # Dynamo asks the global setting, not the options of `torch.compile`.
            with torch._inductor.config.patch({self._setting: True, "post_grad_custom_pre_pass": self._rows}):
                yield
        finally:
            self._forms.end()
            self._model.set_attn_implementation(usual)


def _layers(model: PreTrainedModel) -> Sequence[Module]:
    try:
        return list(decoder_layers(model)[1])
    except InfeasibleError:
        return ()
