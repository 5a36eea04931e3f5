"""What torchao makes of rows of zeros: zeros, in every format that processors have too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchao.quantization import PerRow
from torchao.quantization.quantize_.workflows import Float8Tensor

from genopt.techniques.torchao_schemes import float8_dynamic, float8_weight_only, int8_dynamic, int8_weight_only, round_matrices


def two_layers() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 16)).to(torch.bfloat16)
    with torch.no_grad():
        layers[0].weight[3] = 0
    return layers


@pytest.mark.parametrize("scheme", [int8_weight_only, int8_dynamic, float8_weight_only])
def test_a_row_of_zeros_stays_one_and_the_others_what_they_are(scheme: Callable[[], Any]) -> None:
    plain, rounded = two_layers(), two_layers()
    round_matrices(rounded, scheme(), ["0"])
    tokens = torch.randn(20, 64, dtype=torch.bfloat16)
    expected, found = plain[0](tokens), rounded[0](tokens)
    assert torch.equal(found[:, 3], expected[:, 3]), "the bias alone"
    assert torch.nn.functional.cosine_similarity(found.float(), expected.float()).min() > 0.99
    assert type(rounded[1].weight.data) is torch.Tensor, "what is not named stays as it is"


def test_a_token_of_zeros_is_one_as_8_bit_floats() -> None:
    least = float8_dynamic().activation_value_lb
    tokens = torch.stack([torch.zeros(64), torch.full((64,), 3.0)]).to(torch.bfloat16)
    assert torch.equal(Float8Tensor.from_hp(tokens, granularity=PerRow(), hp_value_lb=least).dequantize(), tokens)
