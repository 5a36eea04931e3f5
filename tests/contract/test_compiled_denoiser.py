from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from genopt.engines.compiled_denoiser import CompiledDenoiser

WIDTH = 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows + self.outer(nn.functional.gelu(self.inner(self.norm(rows))))


class Talking(Block):
    """Cannot be compiled in one piece."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return super().forward(rows)


class Denoiser(nn.Module):
    def __init__(self, kind: type[Block], count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([kind() for _ in range(count)])

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor]:
        for block in self.blocks:
            rows = block(rows)
        return (rows,)


def made(kind: type[Block] = Block, count: int = 4, *, rounded: bool = False) -> Any:
    denoiser = Denoiser(kind, count).eval()
    if rounded:
        quantize_(denoiser, Int8WeightOnlyConfig())
    return denoiser


@pytest.fixture(autouse=True)
def compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.inference_mode()
def differs(denoiser: Any) -> float:
    """How far the compiled denoiser is from the one it was made of, at most."""
    rows = torch.randn(8, WIDTH)
    expected = denoiser(rows)[0]
    found = CompiledDenoiser(denoiser, list(denoiser.blocks), graphs=False)(rows)[0]
    assert torch.equal(denoiser(rows)[0], expected), "what is not compiled goes on as before"
    return float((found - expected).abs().max())


@pytest.mark.parametrize("rounded", [False, True])
def test_blocks_that_are_alike_are_compiled_once(rounded: bool) -> None:
    traced = {}
    for count in (2, 12):
        counters.clear()
        torch._dynamo.reset()
        assert differs(made(count=count, rounded=rounded)) < 1e-4
        traced[count] = counters["stats"]["calls_captured"]
    assert traced[12] - traced[2] <= 20, "what was traced before is called, and its result taken, for each"
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("rounded", [False, True])
def test_blocks_that_are_no_region_are_compiled_with_all_else(rounded: bool) -> None:
    assert differs(made(Talking, rounded=rounded)) < 1e-4


@pytest.mark.parametrize("rounded", [False, True])
def test_sizes_beyond_those_that_pytorch_compiles_run_as_they_are(rounded: bool) -> None:
    denoiser = made(count=2, rounded=rounded)
    compiled = CompiledDenoiser(denoiser, list(denoiser.blocks), graphs=False)
    sizes = [*range(8, 14), 8]
    with torch._dynamo.config.patch(recompile_limit=2), torch.inference_mode():
        counters.clear()
        for size in sizes:
            rows = torch.randn(size, WIDTH)
            assert torch.allclose(compiled(rows)[0], denoiser(rows)[0], atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2


def test_what_fails_once_it_is_compiled_is_said_and_not_compiled_more_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = made()
    compiled = CompiledDenoiser(denoiser, list(denoiser.blocks), graphs=False)
    with torch.inference_mode():
        compiled(torch.randn(8, WIDTH))
        monkeypatch.delattr(torch, "compile")
        with pytest.raises((RuntimeError, torch._dynamo.exc.TorchDynamoException)):
            compiled(torch.randn(8, WIDTH + 1))
