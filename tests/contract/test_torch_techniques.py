"""What the techniques of PyTorch make of tiny random models, beyond the contract of every entry."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchao.quantization import Int8Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from genopt import clock
from genopt.engines.base import GenerationRequest
from genopt.engines.torch_engine import TorchEngine
from genopt.errors import DataError, InfeasibleError, SpecError
from genopt.models import checkpoint
from genopt.models.checkpoint import load_model
from genopt.models.decoder import decoder_layers, without_layers
from genopt.quality.audit import audit
from genopt.store.artifacts import folder_digest
from genopt.techniques.base import TransformContext
from genopt.techniques.calibration import write_sequences
from genopt.techniques.drop_layers import DropLayers, layer_losses
from genopt.techniques.magnitude_prune import MagnitudePrune
from genopt.techniques.run import run_transform
from genopt.techniques.torchao_float8 import Float8Dynamic, Float8WeightOnly
from genopt.techniques.torchao_int4 import Int4WeightOnly
from genopt.techniques.torchao_int8 import Int8Dynamic, Int8WeightOnly
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer
from tests.contract.tiny_llama import load, prompt


def context(calibration: str | None = None) -> TransformContext:
    return TransformContext(original="", calibration=calibration, seed=0, threads=2, time_limit_s=100)


def log_probs(model: Any, sequence: Sequence[int]) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        logits = torch.log_softmax(model(torch.tensor([list(sequence)])).logits[0, :-1].float(), dim=-1)
    return logits[torch.arange(len(sequence) - 1), torch.tensor(sequence[1:])].numpy()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("technique", [Int8WeightOnly, Int8Dynamic])
def test_eight_bits_load_back_smaller_and_close(llama: Path, tmp_path: Path, technique: Any) -> None:
    technique.apply(llama, tmp_path, {}, context(), lambda _: None)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, llama)]
    assert sizes[0] < sizes[1]
    session = TorchEngine.open(tmp_path, {"threads": 1})
    found = np.array(session.score([prompt(60, 3)]).log_probs[0])
    session.close()
    assert np.abs(found - log_probs(load(llama), prompt(60, 3))).mean() < 0.1


@pytest.mark.parametrize("technique", [Int8WeightOnly, Int8Dynamic])
def test_a_head_of_its_own_can_be_rounded_too(tmp_path: Path, technique: Any) -> None:
    source = write_tiny_llama(tmp_path / "llama", tied=False)
    sizes = []
    for head in (False, True):
        folder = tmp_path / f"head-{head}"
        folder.mkdir()
        technique.apply(source, folder, {"head": head}, context(), lambda _: None)
        sizes.append((folder / "model.safetensors").stat().st_size)
        session = TorchEngine.open(folder, {"threads": 1})
        found = np.array(session.score([prompt(60, 3)]).log_probs[0])
        session.close()
        assert np.abs(found - log_probs(load(source), prompt(60, 3))).mean() < 0.1
    assert sizes[1] < sizes[0]


FAMILIES: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, num_hidden_layers=2,
        max_position_embeddings=128, initializer_range=0.1,
    ),
    "qwen": Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
        num_hidden_layers=2, max_position_embeddings=128, initializer_range=0.1,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1),
}  # fmt: skip


def tensor_bytes(folder: Path) -> int:
    """Of a folder's weights, without the headers that describe them."""
    return sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_rounded_head_leaves_the_table_of_embeddings_as_it_was(family: str, tied: bool, tmp_path: Path) -> None:
    """Whether they were the same before or not; what is written opens without the original, and is the same each time."""
    config = copy.deepcopy(FAMILIES[family])
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    source, first, second, kept = (tmp_path / name for name in ("source", "first", "second", "kept"))
    write_tiny_tokenizer(source)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.max_length = 77
    model.save_pretrained(source)
    for folder, head in ((first, True), (second, True), (kept, False)):
        folder.mkdir()
        Int8WeightOnly.check(source, {"head": head})
        Int8WeightOnly.apply(source, folder, {"head": head}, context(), lambda _: None)
    assert folder_digest(first)[0] == folder_digest(second)[0]
    assert json.loads((first / "generation_config.json").read_text())["max_length"] == 77
    shutil.rmtree(source)
    opened, plain = load_model(first), load_model(kept)
    assert torch.equal(opened.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert isinstance(opened.get_output_embeddings().weight, Int8Tensor)
    assert not isinstance(plain.get_output_embeddings().weight, Int8Tensor)
    found, expected = (log_probs(one, prompt(60, 3)) for one in (opened, plain))
    assert 0 < np.abs(found - expected).mean() < 0.05
    assert not any(audit(folder, 100_000).problems for folder in (first, kept))
    grown = tensor_bytes(first) - tensor_bytes(kept) - (VOCABULARY * 64 if tied else -VOCABULARY * 64)
    assert abs(grown) < 4 * VOCABULARY + 1024, "the rounded head comes to the table, or takes the place of the head; beside it are scales"


@pytest.mark.parametrize(("technique", "least"), [(Int4WeightOnly, (8, 0)), (Float8Dynamic, (8, 9)), (Float8WeightOnly, (8, 9))])
def test_what_gpus_alone_can_multiply_is_refused_elsewhere(
    llama: Path, technique: Any, least: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InfeasibleError, match="need an NVIDIA GPU and there is none here"):
        technique.check(llama, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(InfeasibleError, match=rf"capability {least[0]}\.{least[1]} or later"):
        technique.check(llama, {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: least)
    technique.check(llama, {})


def test_half_of_each_decoder_matrix_becomes_zero_and_nothing_else_changes(llama: Path, tmp_path: Path) -> None:
    MagnitudePrune.apply(llama, tmp_path, {"sparsity": 0.5}, context(), lambda _: None)
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (llama, tmp_path))
    for name, value in before.items():
        if ".layers." in name and value.ndim == 2:
            zeros = after[name] == 0
            assert float(zeros.float().mean()) == pytest.approx(0.5, abs=0.01)
            assert torch.equal(after[name][~zeros], value[~zeros])
            assert value[zeros].abs().max() <= value[~zeros].abs().min()
        else:
            assert torch.equal(after[name], value), name


def test_two_of_every_four_neighbours_become_zero(llama: Path, tmp_path: Path) -> None:
    MagnitudePrune.apply(llama, tmp_path, {"pattern": "2:4"}, context(), lambda _: None)
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (llama, tmp_path))
    for name, value in before.items():
        if ".layers." in name and value.ndim == 2:
            whole = value.shape[1] // 4 * 4
            groups, kept = (table[:, :whole].reshape(-1, 4) for table in (value, after[name]))
            assert torch.equal((kept == 0).sum(dim=1), torch.full((len(kept),), 2)), name
            assert torch.equal(kept.abs().sum(dim=1), groups.abs().sort(dim=1).values[:, 2:].sum(dim=1)), "the larger two stay"
            assert torch.equal(after[name][:, whole:], value[:, whole:])
        else:
            assert torch.equal(after[name], value), name
    with pytest.raises(SpecError, match=r"2:4 of magnitude_prune is a sparsity of 0\.5"):
        MagnitudePrune.check(llama, {"pattern": "2:4", "sparsity": 0.3})


def written(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    write_tiny_tokenizer(folder)
    AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name]), dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("params", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_matrices_that_are_kept_the_other_way_round_are_pruned_too(params: dict[str, Any], tmp_path: Path) -> None:
    source, made = written("gpt2", tmp_path / "source"), tmp_path / "made"
    made.mkdir()
    MagnitudePrune.apply(source, made, params, context(), lambda _: None)
    kept = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    matrices = {name: value.T for name, value in load_model(made).state_dict().items() if name.endswith(kept)}
    assert len(matrices) == 8
    for name, value in matrices.items():
        assert float((value == 0).float().mean()) == pytest.approx(0.5, abs=0.01), name
        if "pattern" in params:
            assert set((value.reshape(-1, 4) == 0).sum(dim=1).tolist()) == {2}, "neighbours are those that a row's sum takes together"


def test_large_models_are_written_in_several_files(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, request = [], GenerationRequest(prompt_ids=prompt(20), max_new_tokens=8)
    for name, shard in (("one", checkpoint.SHARD), ("several", "60KB")):
        monkeypatch.setattr(checkpoint, "SHARD", shard)
        (tmp_path / name).mkdir()
        Int8WeightOnly.apply(llama, tmp_path / name, {"head": True}, context(), lambda _: None)
        assert audit(tmp_path / name, 0).problems == ()
        (answer,) = TorchEngine.open(tmp_path / name, {}).generate([request])
        answers.append(answer.token_ids)
    assert answers[0] == answers[1]
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1


@pytest.mark.parametrize("head", [False, True])
def test_a_model_without_a_matrix_that_torchao_rounds_is_refused(head: bool, tmp_path: Path) -> None:
    source, made = written("gpt2", tmp_path / "source"), tmp_path / "made"
    made.mkdir()
    with pytest.raises(InfeasibleError, match=r"nn\.Linear, and this model has none besides its head"):
        Int8WeightOnly.apply(source, made, {"head": head}, context(), lambda _: None)
    assert not any(made.iterdir())


@pytest.mark.parametrize("technique", ["torchao_int8_dynamic", "compressed_tensors", "magnitude_prune", "onnx_genai", "distill"])
def test_a_quantized_model_is_not_quantized_again(technique: str, tmp_path: Path) -> None:
    source, made = written("llama", tmp_path / "source"), tmp_path / "made"
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (source / "config.json").write_text(json.dumps(config))
    payload = {"technique": technique, "source": str(source), "destination": str(made), "params": {}, "context": context().model_dump()}
    with pytest.raises(InfeasibleError, match=rf"already quantized \(gptq\) and {technique} needs its weights as they were trained; .*--exclude"):
        run_transform(payload, clock.now() + 60)
    assert not made.exists()


def test_a_model_without_layers_is_the_model_with_those_skipped(llama: Path) -> None:
    model = load(llama)
    smaller = without_layers(model, [1])
    assert smaller.config.num_hidden_layers == 2
    _, layers = decoder_layers(model)
    layers[1].forward = lambda hidden, *_, **__: hidden
    np.testing.assert_allclose(log_probs(smaller, prompt(20)), log_probs(model, prompt(20)), atol=1e-5)


def test_a_model_without_layers_ends_its_answers_as_the_whole_one(llama: Path) -> None:
    model = load(llama)
    model.generation_config.eos_token_id = [2, 7]
    assert without_layers(model, [1]).generation_config.eos_token_id == [2, 7]


def test_layers_of_other_architectures_are_found_too() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=32)).eval()
    assert decoder_layers(model)[0] == "transformer.h"
    assert len(decoder_layers(without_layers(model, [0, 2]))[1]) == 1


def test_the_loss_of_a_layer_is_the_divergence_without_it(llama: Path) -> None:
    model, sequence = load(llama), list(prompt(24, 9))
    with torch.inference_mode():
        reference, skipped = (torch.log_softmax(each(torch.tensor([sequence])).logits[0], -1) for each in (model, without_layers(model, [2])))
    expected = float((reference.exp() * (reference - skipped)).sum(-1).mean())
    said: list[str] = []
    losses = layer_losses(model, [sequence], said.append)
    assert losses[2] == pytest.approx(expected, rel=1e-3)
    assert said == ["judged all layers on 1 of 1 texts"]
    np.testing.assert_allclose(log_probs(model, sequence), log_probs(load(llama), sequence), atol=1e-6)  # nothing stays changed


TUPLES: Mapping[str, PreTrainedConfig] = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=3, n_head=4, initializer_range=0.2),
    "gptj": GPTJConfig(vocab_size=VOCABULARY, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, n_positions=128, initializer_range=0.2),
}  # fmt: skip


@pytest.mark.parametrize("family", TUPLES)
def test_layers_that_return_tuples_are_judged_and_left_out_too(family: str, tmp_path: Path) -> None:
    source, made, text = tmp_path / "source", tmp_path / "made", list(prompt(48, 4))
    write_tiny_tokenizer(source)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(copy.deepcopy(TUPLES[family])).save_pretrained(source)
    made.mkdir()
    write_sequences(tmp_path / "text.parquet", [text], [])
    DropLayers.apply(source, made, {"calibration_tokens": 48}, context(str(tmp_path / "text.parquet")), lambda _: None)
    model = load_model(source)
    with torch.inference_mode():
        whole = torch.log_softmax(model(torch.tensor([text])).logits[0], -1)
        smaller = [without_layers(model, [index]) for index in range(3)]
        apart = [float((whole.exp() * (whole - torch.log_softmax(one(torch.tensor([text])).logits[0], -1))).sum(-1).mean()) for one in smaller]
    assert layer_losses(model, [text], lambda _: None) == pytest.approx(apart, rel=1e-3)
    wanted = smaller[apart.index(min(apart))]
    np.testing.assert_allclose(log_probs(load_model(made), text), log_probs(wanted, text), atol=1e-5)


def test_more_layers_than_there_are_cannot_be_dropped(llama: Path) -> None:
    with pytest.raises(InfeasibleError, match="has 3 layers"):
        DropLayers.check(llama, {"count": 3})


@pytest.mark.parametrize("params", [{"count": 0}, {"layers": 1}])
def test_bad_parameters_are_named(llama: Path, params: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(params))):
        DropLayers.check(llama, params)


def test_without_calibration_text_the_flag_is_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--calib-data"):
        DropLayers.apply(llama, tmp_path, {}, context(), lambda _: None)
