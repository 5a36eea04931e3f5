"""The decode step as GPUs compile it, on the CPU: no CUDA graph and no tuning, but the same regions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torchao.core.config import AOBaseConfig
from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaForCausalLM, MistralConfig, StaticCache
from transformers.cache_utils import StaticLayer

from genopt.engines import plain_weights, torch_step
from genopt.engines.base import GenerationRequest
from genopt.engines.torch_engine import TorchEngine
from genopt.engines.torch_step import CompiledStep, step_cache
from genopt.errors import InfeasibleError
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

STEPS = 4
TINY: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48,
    "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo alone, as what it captures is run as it is: how often it does so is the same."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def compared(model: Any, steps: int = STEPS, *, frozen: bool = False) -> float:
    """How far the logits of a compiled step are from those of the model as it is."""

    def decode(token: Tensor, position: Tensor, cache: StaticCache) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=token, position_ids=position, past_key_values=cache, use_cache=True).logits[:, -1].float()
        return logits, logits.argmax(-1, keepdim=True)

    compiled, cache, ids = CompiledStep(model, decode, None, frozen=frozen), step_cache(model, 32), torch.arange(9)[None]
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


WINDOWED = {
    "window-within": MistralConfig(num_hidden_layers=1, sliding_window=8, **TINY),
    "window-beyond": MistralConfig(num_hidden_layers=1, sliding_window=100, **TINY),
    "some-layers": Gemma3TextConfig(num_hidden_layers=2, sliding_window=8, layer_types=["sliding_attention", "full_attention"], **TINY),
}  # fmt: skip


@pytest.mark.parametrize("kind", WINDOWED)
def test_layers_with_a_window_are_compiled_once_for_all_positions(kind: str, tmp_path: Path, quick: None) -> None:
    write_tiny_tokenizer(tmp_path)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(WINDOWED[kind]).eval()
    model.save_pretrained(tmp_path)
    session = TorchEngine.open(tmp_path, {"threads": 1, "dtype": "float32", "compile": True, "cache_tokens": 64})
    for length in (20, 3):
        ids, said = torch.randint(VOCABULARY, (length,)).tolist(), []

        def hear(_row: int, _token: int, scored: Any, said: list[float] = said) -> bool:
            said.append(scored.log_prob)
            return True

        (found,) = session.generate([GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=30, top_logprobs=1)], hear)
        with torch.inference_mode():
            wanted = model(torch.tensor([[*ids, *found.token_ids]]), use_cache=False).logits[0, length - 1 : -1].log_softmax(-1)
        assert list(found.token_ids) == wanted.argmax(-1).tolist()
        assert said == pytest.approx(wanted.amax(-1).tolist(), abs=1e-4)
    memory = session.memory()
    assert memory.kv_cache_bytes == 64 * memory.kv_bytes_per_token
    session.close()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("kind", ["window-within", "window-beyond"])
def test_a_step_that_is_compiled_anew_for_each_token_is_refused(kind: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_step, "StaticSlidingWindowLayer", StaticLayer)  # leaves layers that count in Python
    write_tiny_tokenizer(tmp_path)
    AutoModelForCausalLM.from_config(WINDOWED[kind]).save_pretrained(tmp_path)
    options = {"threads": 1, "dtype": "float32", "compile": True, "cache_tokens": 64}
    with pytest.raises(InfeasibleError, match="anew for each token"):
        TorchEngine.open(tmp_path, options)
    monkeypatch.setattr(CompiledStep, "follow", lambda *_: [])
    session = TorchEngine.open(tmp_path, options)
    with pytest.raises(InfeasibleError, match="anew for each token"):
        session.generate([GenerationRequest(prompt_ids=(1, 2, 3), max_new_tokens=20)])


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
