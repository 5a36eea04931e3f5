"""16-bit products by way of fp32: the same numbers, whatever the processor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from genopt.models.products import ByFp32, are_slow, by_fp32


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 96, dtype=torch.bfloat16)


def test_products_are_those_of_fp32_rounded_once(layer: nn.Linear) -> None:
    given = torch.randn(16, 64).bfloat16()
    with ByFp32():
        found = layer(given)
    exact = nn.functional.linear(given.float(), layer.weight.float(), layer.bias.float()).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact)
    torch.testing.assert_close(found, layer(given), rtol=0.02, atol=0.02)


def test_attention_goes_by_way_of_fp32_too() -> None:
    torch.manual_seed(0)
    one = torch.randn(1, 2, 8, 16).bfloat16()
    with ByFp32():
        found = nn.functional.scaled_dot_product_attention(one, one, one, is_causal=True)
    wide = one.float()
    assert torch.equal(found, nn.functional.scaled_dot_product_attention(wide, wide, wide, is_causal=True).bfloat16())


def test_gradients_pass_through(layer: nn.Linear) -> None:
    given = torch.randn(16, 64).bfloat16()
    with ByFp32():
        layer(given).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_other_formats_and_single_rows_are_left_alone(layer: nn.Linear) -> None:
    single, wide = torch.randn(1, 64).bfloat16(), nn.Linear(64, 8)
    expected = layer(single)
    with ByFp32():
        assert torch.equal(layer(single), expected)
        assert wide(torch.randn(16, 64)).dtype == torch.float32
        assert (torch.ones(8, dtype=torch.bfloat16) + 1).dtype == torch.bfloat16


def test_only_processors_are_tried_and_only_in_16_bits() -> None:
    assert not are_slow(torch.float32, torch.device("cpu"))
    assert not are_slow(torch.bfloat16, torch.device("cuda"))


def test_nothing_changes_where_products_are_fast(layer: nn.Linear) -> None:
    given = torch.randn(16, 64).bfloat16()
    expected = layer(given)
    with by_fp32(False):
        assert torch.equal(layer(given), expected)
