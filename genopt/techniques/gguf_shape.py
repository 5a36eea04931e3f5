"""What GGUF has to know of a model's shape, read from its config.json. Needs neither the gguf package nor llama.cpp.

After convert_hf_to_gguf.py of llama.cpp (LlamaModel, Qwen2Model, Qwen3Model, GPT2Model).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.errors import InfeasibleError
from genopt.plan import Record


class Layout(Record):
    """How the weights of an architecture lie in a GGUF file.

    Attributes:
        name: GGUF's word for it.
        paired: Rows of queries and keys that are rotated together lie side by side.
        transposed: Checkpoints store matrices with their inputs first.
        root_mean_square: Norms do not subtract the mean.
        rotary: Positions turn queries and keys; otherwise they are a table that is added.
    """

    name: str
    paired: bool = False
    transposed: bool = False
    root_mean_square: bool = True
    rotary: bool = True


LAYOUTS: Mapping[str, Layout] = {
    "LlamaForCausalLM": Layout(name="llama", paired=True),
    "MistralForCausalLM": Layout(name="llama", paired=True),
    "Qwen2ForCausalLM": Layout(name="qwen2"),
    "Qwen3ForCausalLM": Layout(name="qwen3"),
    "GPT2LMHeadModel": Layout(name="gpt2", transposed=True, root_mean_square=False, rotary=False),
}
"""What can be written, by the class in config.json."""


class Shape(Record):
    """A model's shape.

    Attributes:
        layout: Of its architecture.
        vocabulary: Token ids.
        context: Tokens of the longest sequence.
        embedding: Width of the residual stream.
        feed_forward: Width inside of the MLP.
        layers: Decoder layers.
        heads: Of queries.
        groups: Heads of keys and values.
        head_size: Width of a head.
        epsilon: Of the norms.
        rope_base: Base of the rotary frequencies.
        rope_factors: By what each frequency is divided; empty divides none.
        tied: The head is the embedding.
    """

    layout: Layout
    vocabulary: int
    context: int
    embedding: int
    feed_forward: int
    layers: int
    heads: int
    groups: int
    head_size: int
    epsilon: float
    rope_base: float
    rope_factors: tuple[float, ...]
    tied: bool

    def odd_width(self, block: int) -> tuple[str, int] | None:
        """A width of the matrices' inputs that blocks of weights do not divide."""
        inputs = {"hidden_size": self.embedding, "intermediate_size": self.feed_forward, "the attention's output": self.heads * self.head_size}
        return next(((name, width) for name, width in inputs.items() if width % block), None)


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder.

    Raises:
        InfeasibleError: It is no such folder, or the model has something that genopt cannot write.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InfeasibleError(f"{folder} has no config.json; only Hugging Face folders can be written as GGUF.")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    architecture = str((config.get("architectures") or ["a model without a named architecture"])[0])
    if architecture not in LAYOUTS:
        raise InfeasibleError(f"genopt cannot write {architecture} as GGUF; use another engine, or give a .gguf file of this model.")
    layout = LAYOUTS[architecture]
    embedding, heads = _number(config, "hidden_size", "n_embd"), _number(config, "num_attention_heads", "n_head")
    context = _number(config, "max_position_embeddings", "n_positions")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is not None and window < context:
        raise InfeasibleError(f"genopt cannot write {architecture} with a window of {window} tokens as GGUF; use another engine for this model.")
    head_size = int(config.get("head_dim") or embedding // heads)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    return Shape(
        layout=layout, vocabulary=config["vocab_size"], context=context, embedding=embedding, heads=heads, head_size=head_size,
        feed_forward=int(config.get("intermediate_size") or config.get("n_inner") or 4 * embedding),
        layers=_number(config, "num_hidden_layers", "n_layer"), groups=int(config.get("num_key_value_heads") or heads),
        epsilon=float(config.get("rms_norm_eps") or config.get("layer_norm_epsilon") or 1e-5), rope_base=base,
        rope_factors=_rope_factors(rope, base, head_size), tied=bool(config.get("tie_word_embeddings", False)),
    )  # fmt: skip


def _number(config: Mapping[str, Any], *names: str) -> int:
    found = next((config[name] for name in names if name in config), None)
    if found is None:
        raise InfeasibleError(f"The model's config.json does not tell its {names[0]}, so it cannot be written as GGUF; use another engine.")
    return int(found)


def _rope_factors(rope: Mapping[str, Any], base: float, head_size: int) -> tuple[float, ...]:
    """What Llama 3.1 divides its rotary frequencies by: nothing the fast ones, `factor` the slow ones, and between them a mixture.

    Raises:
        InfeasibleError: Positions are stretched in another way.
    """
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind == "default":
        return ()
    if kind != "llama3":
        raise InfeasibleError(f"genopt cannot write positions of type {kind!r} as GGUF; use another engine for this model.")
    factor, trained = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    found = []
    for place in range(0, head_size, 2):
        turns = trained / (2 * math.pi * base ** (place / head_size))  # within the context that it was trained with
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / factor + share))
    return tuple(found)
