import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genopt.techniques.smallest import zero_smallest, zero_two_of_four

TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """With many equals, and some seen the other way round."""
    rows, width = draw(st.integers(1, 9)), draw(st.integers(1, 13))
    values = draw(st.lists(st.sampled_from([-3.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1e-6, 7.0]), min_size=rows * width, max_size=rows * width))
    matrix = torch.tensor(values, dtype=draw(st.sampled_from(TYPES)))
    return matrix.view(width, rows).T if draw(st.booleans()) else matrix.view(rows, width)


@given(matrices(), st.floats(0, 1))
def test_the_smallest_are_those_that_sorting_finds(weight: torch.Tensor, share: float) -> None:
    count, expected = round(share * weight.numel()), weight.clone().contiguous()
    expected.view(-1)[expected.abs().flatten().argsort(stable=True)[:count]] = 0
    zero_smallest(weight, count)
    assert torch.equal(weight, expected)


@given(matrices())
def test_two_of_four_are_those_that_sorting_finds(weight: torch.Tensor) -> None:
    whole, expected = weight.shape[1] // 4 * 4, weight.clone().contiguous()
    groups = expected[:, :whole].reshape(-1, 4)
    expected[:, :whole] = groups.scatter(1, groups.abs().argsort(dim=1, stable=True)[:, :2], 0).view(-1, whole) if whole else 0
    zero_two_of_four(weight)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("kind", TYPES)
def test_all_and_none_are_shares_too(kind: torch.dtype) -> None:
    weight = torch.randn(8, 8).to(kind)
    before = weight.clone()
    zero_smallest(weight, 0)
    assert torch.equal(weight, before)
    zero_smallest(weight, 64)
    assert not weight.any()
