"""Models of a configuration and empty weights, and how they are found."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genopt.models.resolve import ResolvedModel, resolve

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 128, "eos_token_id": 2}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
WIDTH = {"BF16": 2, "F32": 4}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        elements = 1
        for side in shape:
            elements *= side
        begin, end = end, end + elements * WIDTH[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", {"embed": ("BF16", (10, 4)), "norm": ("F32", (4,))})
    return folder


def write_pipeline(folder: Path, name: str = "StableDiffusionPipeline", *, denoiser: str = "UNet") -> Path:
    folder.mkdir(parents=True)
    components = {"unet": ["diffusers", denoiser], "text_encoder": ["transformers", "CLIPTextModel"], "scheduler": ["diffusers", "DDIM"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "safety_checker": [None, None], **components}))
    for component in components:
        (folder / component).mkdir()
    write_safetensors(folder / "unet" / "diffusion_pytorch_model.safetensors", {"conv": ("F32", (3, 3))})
    write_safetensors(folder / "text_encoder" / "model.safetensors", {"embed": ("F32", (2,))})
    return folder


def found(model: Path | str, tmp_path: Path, **options: Any) -> ResolvedModel:
    return resolve(str(model), cache=tmp_path / "cache", progress=lambda _message: None, **options)
