"""The decode step as GPUs compile it, on the CPU: no CUDA graph and no tuning, but the same regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaForCausalLM, StaticCache

from genopt.engines.torch_step import CompiledStep
from genopt.testing.tiny_models import write_tiny_llama

STEPS = 4


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


def compared(model: Any) -> float:
    """How far the logits of a compiled step are from those of the model as it is."""

    def decode(token: Tensor, position: Tensor, cache: StaticCache) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1].float()
        return logits, logits.argmax(-1, keepdim=True)

    compiled, cache, ids = CompiledStep(model, decode, None, frozen=False), StaticCache(config=model.config, max_cache_len=32), torch.arange(9)[None]
    furthest = 0.0
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        for place in range(STEPS):
            token = torch.full((1, 1), 20 + place)
            ids = torch.cat([ids, token], dim=1)
            with compiled.settings():
                found = compiled(token, torch.full_like(token, 9 + place), cache)[0]
            furthest = max(furthest, (found - model(ids).logits[:, -1].float()).abs().max().item())
    return furthest


def test_layers_that_are_alike_are_compiled_once(llama: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32, num_hidden_layers=8).eval()
    furthest = compared(model)
    assert furthest < 1e-4
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["stats"]["calls_captured"] < 100  # about 50 in a layer
    assert all("forward" not in vars(layer) for layer in model.model.layers)


def test_layers_that_cannot_be_compiled_by_themselves_are_compiled_with_all_else(llama: Path) -> None:
    torch._dynamo.reset()
    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval()
    quantize_(model.model, Int8WeightOnlyConfig())
    furthest = compared(model)
    assert furthest < 0.1
    assert all("forward" not in vars(layer) for layer in model.model.layers)
