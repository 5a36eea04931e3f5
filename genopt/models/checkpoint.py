"""Hugging Face checkpoints of language models in PyTorch: one way to load them, one to write changed ones."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from genopt.models.trust import trusted

COMPANIONS = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken", "*.bpe", "*.importance", "*.md", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What goes along with changed weights: descriptions, tokenizers, code and terms, what was measured of inputs, and no weights in other formats."""
SHARD = "2GB"
"""Largest file of weights that is written: several are hashed at once, and a single one at about 1 GB/s (16 GB in 16 s beside an H200)."""
INDEX = ".index.json"
"""Ends the names of files that say in which shards weights lie."""


def load_model(folder: Path, dtype: str | None = None) -> PreTrainedModel:
    """Loads a checkpoint for inference, on the GPU where there is one; torchao checkpoints stay quantized.

    Args:
        folder: Hugging Face folder with safetensors.
        dtype: Name of a dtype, or None for the checkpoint's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_with(folder, dtype=dtype or "auto", device_map=device)
    model.eval()
    return model


def load_with(folder: Path, **settings: Any) -> PreTrainedModel:
    """Loads a checkpoint as transformers does, with no network, no pickles, and code of its own only where it is trusted.

    Args:
        folder: Hugging Face folder.
        settings: Of `from_pretrained`.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=trusted(), **settings
    )
    return model


def load_untied(folder: Path, **settings: Any) -> PreTrainedModel:
    """Loads a checkpoint whose head is a matrix of its own, also where the checkpoint's is the table of embeddings.

    Args:
        folder: Hugging Face folder with safetensors.
        settings: Of `from_pretrained`; what they change about the head leaves the table alone.
    """
    stored = load_with(folder, dtype="auto")
    for config in (stored.config, stored.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False
    model: PreTrainedModel = type(stored).from_pretrained(None, config=stored.config, state_dict=stored.state_dict(), **settings)
    model.generation_config = stored.generation_config
    return model


def save_model(model: PreTrainedModel, source: Path, destination: Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes a changed model as safetensors, with the tokenizer and other files of the checkpoint that it came from.

    Args:
        model: What to write.
        source: The checkpoint that was changed.
        destination: An empty folder.
        state: What to write instead of its own weights.
    """
    model.save_pretrained(destination, state_dict=state, max_shard_size=SHARD)
    for path in destination.glob("*.safetensors"):
        sort_metadata(path)
    copy_companions(source, destination)


def copy_companions(source: Path, destination: Path) -> None:
    """Copies what belongs to a checkpoint beside its weights, unless the destination has it.

    Args:
        source: The checkpoint.
        destination: Where changed weights are.
    """
    for path in sorted({path for pattern in COMPANIONS for path in source.glob(pattern)}):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(INDEX) and not (destination / path.name).exists():
            shutil.copyfile(path, destination / path.name)


def sort_metadata(path: Path) -> None:
    """Rewrites a safetensors file's header with its metadata in order: the library writes it in a random one.

    Only so do equal weights have equal bytes, which is what artifacts are named by.
    """
    with path.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            if len(sorted_header) <= length:
                stream.seek(8)
                stream.write(sorted_header.ljust(length))
