"""Hugging Face checkpoints of language models in PyTorch: one way to load them, one to write changed ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")


def load_model(folder: Path, dtype: str | None = None) -> PreTrainedModel:
    """Loads a checkpoint for inference, on the GPU where there is one; torchao checkpoints stay quantized.

    Args:
        folder: Hugging Face folder with safetensors.
        dtype: Name of a dtype, or None for the checkpoint's.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", local_files_only=True, device_map=device)
    model.eval()
    return model


def save_model(model: PreTrainedModel, source: Path, destination: Path) -> None:
    """Writes a changed model as safetensors, with the tokenizer and other files of the checkpoint that it came from.

    Args:
        model: What to write.
        source: The checkpoint that was changed.
        destination: An empty folder.
    """
    model.save_pretrained(destination)
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHTS) and not (destination / path.name).exists():
            shutil.copyfile(path, destination / path.name)
