"""Models with a real shape and random weights: speed depends on the shape alone, quality means nothing.

python -m genopt.testing.random_models SHAPE FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt import bootstrap
from genopt.testing.tiny_tokenizer import BOS_ID, EOS_ID, write_tiny_tokenizer

LLAMA_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "llama-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "tie_word_embeddings": True, "rope_theta": 500000.0,
    },
    "llama-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "tie_word_embeddings": False, "rope_theta": 500000.0,
    },
}  # fmt: skip
"""The shapes of Llama 3.2 1B and Llama 3 8B, from their published configurations."""
CONTEXT = 8192
SHARD = "5GB"
"""Largest file, as those models are published."""


def provide_random_llama(folder: Path, shape: str) -> Path:
    """Writes a model as `write_random_llama` does, unless it is there.

    Another process does it: one that has used a GPU holds a part of it to its end, and who measures there afterwards would not be alone.

    Args:
        folder: Where; it appears when all of the model is written.
        shape: A key of `LLAMA_SHAPES`.
    """
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        subprocess.run([*bootstrap.command(sys.executable, "genopt.testing.random_models"), shape, str(partial)], check=True)
        partial.rename(folder)
    return folder


def write_random_llama(folder: Path, shape: str) -> Path:
    """Writes a model of a known shape with Gaussian weights in bfloat16, made on the GPU where there is one.

    Args:
        folder: Created if missing.
        shape: A key of `LLAMA_SHAPES`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    write_tiny_tokenizer(folder, context=CONTEXT, vocabulary=LLAMA_SHAPES[shape]["vocab_size"])
    torch.manual_seed(0)
    config = LlamaConfig(
        **LLAMA_SHAPES[shape], max_position_embeddings=CONTEXT, dtype="bfloat16", bos_token_id=BOS_ID, eos_token_id=EOS_ID,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=SHARD)
    finally:
        torch.set_default_dtype(before)
    return folder


if __name__ == "__main__":
    write_random_llama(Path(sys.argv[2]), sys.argv[1])
