"""What rounding a part of a model costs, on tiny random models of several families."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from genopt.engines.torch_options import TorchOptions
from genopt.engines.torch_session import TorchSession
from genopt.models.matrices import by_family, by_layer, rounded, rounded_to
from genopt.quality.sensitivity import sensitivity
from genopt.search.precision import FAMILIES
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama

SEQUENCES = [[(7 * place + 3 * row) % 250 for place in range(40)] for row in range(2)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> TorchSession:
    return TorchSession(write_tiny_llama(tmp_path_factory.mktemp("llama")), TorchOptions(dtype="float32", threads=1))


def test_every_part_is_tried_and_the_model_is_as_before(session: TorchSession, tmp_path: Path) -> None:
    before = session.score(SEQUENCES)
    found = sensitivity(session, SEQUENCES, tmp_path, (0, 1), lambda: 100.0)
    layers = len(by_layer(session.model))
    assert [part.name for part in found.parts] == [*FAMILIES, *map(str, range(layers))]
    assert all(part.kl[4] > part.kl[8] >= 0 for part in found.parts)
    assert all(part.kl[8] < 0.05 * part.kl[4] for part in found.parts), "sixteen times finer steps"
    assert session.score(SEQUENCES) == before


def test_shares_are_disjoint_and_complete(session: TorchSession, tmp_path: Path) -> None:
    shares = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        shares.append([part.name for part in sensitivity(session, SEQUENCES, tmp_path / str(number), (number, 2), lambda: 100.0).parts])
    assert sorted(shares[0] + shares[1]) == sorted([*FAMILIES, *map(str, range(len(by_layer(session.model))))])


def test_it_ends_when_its_time_does(session: TorchSession, tmp_path: Path) -> None:
    seconds = itertools.count(100, -10)
    found = sensitivity(session, SEQUENCES, tmp_path, (0, 1), lambda: float(next(seconds)))
    assert 0 < len(found.parts) < len(FAMILIES)


CONFIGS = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=VOCABULARY),
    "qwen2": lambda: Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        vocab_size=VOCABULARY,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_families_of_models_have_the_same_matrices(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]()).save_pretrained(tmp_path)
    session = TorchSession(tmp_path, TorchOptions(dtype="float32", threads=1))
    found = by_family(session.model)
    assert set(found) == set(FAMILIES)
    before = [session.score(SEQUENCES), [module.weight.clone() for modules in found.values() for module in modules]]
    for modules in found.values():
        with rounded_to(modules, 4, 32):
            assert session.score(SEQUENCES) != before[0]
    assert session.score(SEQUENCES) == before[0]


def test_rounding_the_head_leaves_a_tied_table_alone(session: TorchSession) -> None:
    table = session.model.get_input_embeddings().weight.clone()
    with rounded_to(by_family(session.model)["head"], 4, 32):
        assert torch.equal(session.model.get_input_embeddings().weight, table)


def test_rounded_weights_lie_on_the_grid_of_their_block() -> None:
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))  # the last block is shorter
    found = rounded(weight, 4, 32)
    assert found.shape == weight.shape
    for row in found.numpy():
        for block in (row[:32], row[32:]):
            assert len(np.unique(block)) <= 16
    assert (rounded(weight, 8, 32) - weight).abs().max() < (found - weight).abs().max() < 0.5
    assert torch.equal(rounded(torch.zeros(2, 8), 4, 32), torch.zeros(2, 8))
