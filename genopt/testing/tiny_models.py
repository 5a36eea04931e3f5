"""Models that are real in everything but size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genopt.testing.tiny_tokenizer import BOS_ID, EOS_ID, write_tiny_tokenizer

VOCABULARY = 300
CONTEXT = 512


def write_tiny_llama(folder: Path, *, layers: int = 3, tied: bool = True) -> Path:
    """Writes a random Llama in bfloat16 with a tokenizer, and returns its folder.

    Args:
        folder: Created if missing.
        layers: Decoder layers.
        tied: Whether its head is its table of embeddings.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tiny_tokenizer(folder, context=CONTEXT)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=128, num_hidden_layers=layers,
        vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=tied, initializer_range=0.1, dtype="bfloat16",
        bos_token_id=BOS_ID, eos_token_id=EOS_ID,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    return folder


def written_by(folder: Path, count: int, length: int, *, seed: int = 0) -> list[list[int]]:
    """Token ids that a model writes by itself at temperature 1: text that it finds likelier than other models do.

    Args:
        folder: The model's.
        count: Sequences.
        length: Tokens of each.
        seed: Of the choice.
    """
    import torch

    from genopt.models.checkpoint import load_model

    model: Any = load_model(folder, "float32")
    torch.manual_seed(seed)
    begin = torch.randint(VOCABULARY, (count, 1), device=model.device)
    found: list[list[int]] = model.generate(
        begin, attention_mask=torch.ones_like(begin), do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_length=length, max_length=length,
        pad_token_id=0,
    ).tolist()  # fmt: skip
    return found
