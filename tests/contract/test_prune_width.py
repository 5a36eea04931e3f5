"""Fewer neurons and heads, on tiny random models of several architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from genopt.errors import DataError, InfeasibleError
from genopt.models import width
from genopt.techniques.base import TransformContext
from genopt.techniques.prune_width import PruneWidth, PruneWidthParams, kept_groups, kept_neurons, narrow

TEXTS = [[(5 * row + 3 * place) % 64 for place in range(24)] for row in range(3)]
DECODER: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**DECODER, mlp_bias=True))


def qwen() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=True))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32))


def opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32))


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor(TEXTS)).logits
    return found


def made(build: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = build().eval()
    for value in model.parameters():  # biases too, which begin at zero
        nn.init.normal_(value, std=0.3)
    return model


def saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder).eval()
    return found


def silence(block: width.Block, units: list[int]) -> None:
    """Lets nothing read these units."""
    with torch.no_grad():
        weight: Any = block.reader.weight
        (weight if block.reader.__class__.__name__ == "Conv1D" else weight.T)[units] = 0


@pytest.mark.parametrize("build", [llama, qwen, gpt2, opt])
def test_neurons_that_nothing_reads_are_the_ones_left_out(build: Any, tmp_path: Path) -> None:
    model = made(build)
    for layer, block in enumerate(width.mlps(model)):
        silence(block, list(range(layer, block.width, 4)))
    before, count = logits(model), width.mlps(model)[0].width
    narrow(model, PruneWidthParams(neurons=0.25), TEXTS, lambda _: None)
    smaller = saved(model, tmp_path)
    assert width.mlps(smaller)[0].width == 3 * count // 4
    assert smaller.num_parameters() < made(build).num_parameters()
    torch.testing.assert_close(logits(smaller), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [llama, qwen])
def test_a_group_of_heads_that_nothing_reads_is_the_one_left_out(build: Any, tmp_path: Path) -> None:
    """Two query heads of 8 channels share each key and value."""
    model = made(build)
    for layer, block in enumerate(width.attentions(model)):
        silence(block, list(range(16 * layer, 16 * (layer + 1))))
    before = logits(model)
    narrow(model, PruneWidthParams(neurons=0, heads=0.5), TEXTS, lambda _: None)
    smaller = saved(model, tmp_path)
    assert [smaller.config.num_attention_heads, smaller.config.num_key_value_heads, smaller.config.head_dim] == [2, 1, 8]
    torch.testing.assert_close(logits(smaller), before, atol=1e-4, rtol=1e-4)


def test_what_has_no_single_mlp_or_its_heads_in_one_matrix_is_refused() -> None:
    experts = made(lambda: MixtralForCausalLM(MixtralConfig(**DECODER, num_local_experts=2)))
    with pytest.raises(InfeasibleError, match="no single MLP"):
        narrow(experts, PruneWidthParams(neurons=0.5), TEXTS, lambda _: None)
    with pytest.raises(InfeasibleError, match="no single attention"):
        narrow(made(gpt2), PruneWidthParams(neurons=0, heads=0.5), TEXTS, lambda _: None)


@pytest.mark.parametrize(
    ("params", "words"),
    [({"neurons": 0.0}, "neither neurons nor heads"), ({"heads": 0.2}, "less than one"), ({"neurons": 1.0}, "neurons"), ({"width": 2}, "width")],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, params: dict[str, Any], words: str) -> None:
    made(llama).save_pretrained(tmp_path)
    with pytest.raises(Exception, match=words):
        PruneWidth.check(tmp_path, params)


def test_without_calibration_text_the_remedy_is_named(tmp_path: Path) -> None:
    context = TransformContext(original="", calibration=None, seed=0, threads=2, time_limit_s=100)
    made(llama).save_pretrained(tmp_path / "source")
    with pytest.raises(DataError, match="--calib-data"):
        PruneWidth.apply(tmp_path / "source", tmp_path / "out", {}, context, lambda _: None)


@given(size=st.integers(min_value=1, max_value=30_000), share=st.floats(min_value=0, max_value=0.99))
def test_at_least_one_unit_stays_and_never_more_than_there_are(size: int, share: float) -> None:
    assert 1 <= kept_neurons(size, share) <= size
    assert 1 <= kept_groups(size, share) <= size
    assert kept_groups(size, 0) == size


def test_widths_of_real_models_stay_multiples_of_what_blocks_and_tiles_need() -> None:
    assert kept_neurons(1536, 0.25) == 1152
    assert kept_neurons(14336, 0.125) == 12544
    assert kept_groups(3, 1 / 3) == 2
