"""The decode step as GPUs compile it, on the CPU: no CUDA graph and no tuning, but the same regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torchao.core.config import AOBaseConfig
from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import LlamaForCausalLM, StaticCache

from genopt.engines import plain_weights
from genopt.engines.torch_engine import TorchEngine
from genopt.engines.torch_step import CompiledStep
from genopt.errors import InfeasibleError
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama

STEPS = 4


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


def compared(model: Any, steps: int = STEPS, *, frozen: bool = False) -> float:
    """How far the logits of a compiled step are from those of the model as it is."""

    def decode(token: Tensor, position: Tensor, cache: StaticCache) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1].float()
        return logits, logits.argmax(-1, keepdim=True)

    compiled, cache, ids = CompiledStep(model, decode, None, frozen=frozen), StaticCache(config=model.config, max_cache_len=32), torch.arange(9)[None]
    furthest = 0.0
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        for place in range(steps):
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


@pytest.mark.parametrize("scheme", [Int8DynamicActivationInt8WeightConfig(version=2), Float8WeightOnlyConfig(set_inductor_config=False)])
def test_layers_with_rounded_weights_too_and_nothing_is_taken_apart_in_a_step(
    llama: Path, monkeypatch: pytest.MonkeyPatch, scheme: AOBaseConfig
) -> None:
    torch._dynamo.reset()
    counters.clear()
    model: Any = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16, num_hidden_layers=8).eval()
    quantize_(model.model, scheme)
    weight = model.model.layers[0].mlp.up_proj.weight
    take_apart, taken = type(weight).__tensor_flatten__, [0]

    def counted(self: Any) -> Any:
        taken[0] += 1
        return take_apart(self)

    monkeypatch.setattr(type(weight), "__tensor_flatten__", counted)
    steps = 12
    furthest = compared(model, steps)
    assert furthest < 0.1
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["stats"]["calls_captured"] < 100
    assert model.model.layers[0].mlp.up_proj.plain_weight_0.data_ptr() == weight.qdata.data_ptr()
    assert taken[0] < steps * 8 * 7, "of the 7 matrices of a layer"
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_step_that_computes_something_else_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(_step: CompiledStep, token: Tensor, _position: Tensor, _cache: StaticCache) -> tuple[Tensor, Tensor]:
        logits = torch.randn(1, VOCABULARY)
        return logits, logits.argmax(-1, keepdim=True)

    monkeypatch.setattr(CompiledStep, "__call__", noise)
    with pytest.raises(InfeasibleError, match="computes something else"):
        TorchEngine.open(llama, {"compile": True})


def test_single_rows_of_8_bit_integers_are_multiplied_right(llama: Path) -> None:
    torch._dynamo.reset()
    model: Any = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval()
    quantize_(model.model, Int8DynamicActivationInt8WeightConfig(version=2, set_inductor_config=False))
    assert compared(model, frozen=True) < 0.1


def test_what_cannot_be_compiled_so_is_compiled_with_all_else(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Tensor:
        raise ValueError("a class that is not put together again")

    monkeypatch.setattr(plain_weights, "_put_together", fails)
    torch._dynamo.reset()
    model: Any = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).eval()
    quantize_(model.model, Int8WeightOnlyConfig(version=2))
    furthest = compared(model)
    assert furthest < 0.1
    assert all("forward" not in vars(module) for module in model.modules())
