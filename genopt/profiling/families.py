"""Sorts a model's modules into families, by structure and name, and counts what each family must read and compute."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

from torch import nn

from genopt.models.experts import COUNTS
from genopt.profiling.roofline import Work
from genopt.search.footprint import ATTENTION, HEAD, MLP, NORMALISATION, OTHER, PROJECTIONS, Part

FRAMEWORK = "framework overhead"
"""What happens outside all families: masks, residual additions, cache bookkeeping, and Python between the layers."""
PREFIX = "family: "
"""Begins the names of the ranges that mark families in a trace."""

_RULES = tuple(
    (family, re.compile(kind, re.IGNORECASE), re.compile(name)) for family, kind, name in (
        # family, part of its modules' class names, their own whole names; the first rule that fits decides
        (NORMALISATION, r"norm", r"norm|ln|ln_\d|ln_f"),
        (ATTENTION, r"rotary|alibi", r"rotary.*"),
        (ATTENTION, r"attention|attn", r"attn|attention|self_attn|self_attention"),
        # "moe" in the middle is of the model: all of Qwen3 MoE has it, its attention and the model itself too
        (MLP, r"mlp|feedforward|ffn|moe(?:block|layer)?$|experts", r"mlp|ffn|feed_forward|moe|fc1|fc2|w[123]|experts|router"),
    )
)  # fmt: skip
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k")


class Layout:
    """Which module belongs to which family.

    Args:
        model: A causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head: nn.Module | None = model.get_output_embeddings()
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._active = _active_share(model.config.get_text_config())
        self.marks: list[tuple[nn.Module, str]] = []
        """Modules that begin a family, with nested ones of another family after the one that holds them."""
        self._always: dict[str, float] = {}
        self._looked_up: dict[str, list[tuple[float, float]]] = {}
        self._routed: dict[str, float] = {}
        self._multiplied: dict[str, float] = {}
        self._seen: set[int] = set()
        self._visit(model, "", None, routed=False)

    def work(self, *, tokens: int, state_bytes: float, attention_operations: float) -> Mapping[str, Work]:
        """What each family reads and computes in one pass.

        Args:
            tokens: New tokens of the pass; only the last one goes through the head where the model can leave the others out.
            state_bytes: KV cache and the like that the attention reads or, of a prompt, writes.
            attention_operations: Operations of the attention itself.
        """
        found: dict[str, Work] = {}
        for family in self._families():
            routed = self._routed.get(family, 0.0) * (1 - (1 - self._active) ** tokens)  # tokens that choose their experts independently
            state = (state_bytes, attention_operations) if family == ATTENTION else (0.0, 0.0)
            read = self._read_by_all(family, tokens) + routed + state[0]
            found[family] = Work(bytes=read, operations=self._operations(family, tokens) + state[1])
        return found

    def parts(self, *, bits: float, attention_operations: float) -> dict[str, Part]:
        """What each family reads and computes for one token, with all its experts apart from what every token reads.

        Args:
            bits: Of one weight.
            attention_operations: Operations of the attention itself.
        """
        return {
            family: Part(
                weights=8 * self._read_by_all(family, 1) / bits, routed=8 * self._routed.get(family, 0.0) / bits, active=self._active, bits=bits,
                operations=self._operations(family, 1) + (attention_operations if family == ATTENTION else 0.0),
            ) for family in self._families()
        }  # fmt: skip

    def _families(self) -> Set[str]:
        return self._always.keys() | self._routed.keys() | self._looked_up.keys() | {ATTENTION}

    def _read_by_all(self, family: str, tokens: int) -> float:
        """Bytes of weights that are read whichever experts the tokens choose."""
        return self._always.get(family, 0.0) + sum(min(tokens * row, table) for row, table in self._looked_up.get(family, ()))

    def _operations(self, family: str, tokens: int) -> float:
        """Operations of the products with a family's weights."""
        rows = 1 if family == HEAD and self._last_only else tokens
        return 2.0 * rows * self._multiplied.get(family, 0.0)

    def _visit(self, module: nn.Module, name: str, inside: str | None, *, routed: bool) -> None:
        found = self._family(module, name, inside)
        if found is not None and found != inside:
            self.marks.append((module, found))
        routed = routed or name == "experts"
        self._count(module, found or inside or OTHER, routed=routed)
        for child_name, child in module.named_children():
            self._visit(child, child_name, found or inside, routed=routed)

    def _family(self, module: nn.Module, name: str, inside: str | None) -> str | None:
        """The family that a module begins or continues; None for one that only holds others."""
        if module is self._head or isinstance(module, nn.Embedding):
            return HEAD
        if module is self._model:
            return None
        for family, kind, own in _RULES:
            if kind.search(type(module).__name__) or own.fullmatch(name):
                return inside if inside == MLP and family == ATTENTION else family
        if inside == ATTENTION and _is_linear(module):
            return PROJECTIONS
        return OTHER if inside is None and any(True for _ in module.parameters(recurse=False)) else None

    def _count(self, module: nn.Module, family: str, *, routed: bool) -> None:
        """Adds a module's own parameters; of an embedding a row per token is read, a tied head still reads them all."""
        for parameter in module.parameters(recurse=False):
            size = float(parameter.numel() * parameter.element_size())
            if isinstance(module, nn.Embedding):
                self._looked_up.setdefault(family, []).append((size / max(1, parameter.shape[0]), size))
                continue
            if id(parameter) in self._seen:
                continue
            self._seen.add(id(parameter))
            self._add(self._routed if routed else self._always, family, size)
            if parameter.dim() >= 2:
                self._add(self._multiplied, family, parameter.numel() * (self._active if routed else 1.0))

    @staticmethod
    def _add(totals: dict[str, float], family: str, value: float) -> None:
        totals[family] = totals.get(family, 0.0) + value


def _is_linear(module: nn.Module) -> bool:
    """A layer that multiplies by one matrix, whatever its class is called (GPT-2 has its own)."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and not any(True for _ in module.children())


def _first(config: Any, names: tuple[str, ...]) -> Iterator[int]:
    return (value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0)


def _active_share(config: Any) -> float:
    """Share of the experts that one token goes through; 1 for models without experts."""
    count, active = next(_first(config, COUNTS), 0), next(_first(config, _ACTIVE_EXPERTS), 0)
    return min(1.0, active / count) if count and active else 1.0


def attention_operations(config: Any, *, tokens: int, context: int) -> float:
    """Operations of all attention layers for `tokens` new tokens after `context` earlier ones; each sees those before it.

    Counts what a causal mask and a window leave, two operations per multiplication and addition: scores over the width of a key, and
    the weighted sum over that of a value. Layers without attention count nothing here.

    Args:
        config: Configuration of the language part.
        tokens: New tokens.
        context: Tokens in the cache.
    """
    heads, width = (getattr(config, name, None) or 0 for name in ("num_attention_heads", "hidden_size"))
    size = getattr(config, "head_dim", None) or (width / heads if heads else 0)
    latent = [getattr(config, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")]
    widths = sum(latent) if all(latent) else 2 * size  # latent attention has keys wider than its values
    return float(sum(2 * heads * widths * _seen(tokens, context, window) for window in _windows(config)))


def _windows(config: Any) -> list[int | None]:
    """Per layer with attention, how many tokens it looks back on; None for all of them."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * (getattr(config, "num_hidden_layers", None) or 0)
    attending = [kind for kind in kinds if "attention" in kind and "linear" not in kind]
    return [window if "sliding" in kind else None for kind in attending]


def _seen(tokens: int, context: int, window: int | None) -> float:
    """Pairs of a new token and one that it sees, itself included."""
    if window is None or context + tokens <= window:
        return tokens * context + tokens * (tokens + 1) / 2
    growing = max(0, window - context)  # tokens that still see everything
    return growing * context + growing * (growing + 1) / 2 + (tokens - growing) * window
