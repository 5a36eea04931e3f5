"""What the PyTorch engine does with tiny random models, beyond the contract of every entry."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
)

from genopt.engines.base import GenerationRequest
from genopt.engines.torch_engine import TorchEngine
from genopt.errors import InfeasibleError, ModelError, SpecError, StageError
from genopt.models.checkpoint import load_model
from genopt.models.inspect import ASSUMED_CONTEXT, inspect
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer
from tests.contract.tiny_llama import load, prompt


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("compiled", [False, True])
def test_greedy_continuation_is_the_model_s_own(llama: Path, compiled: bool) -> None:
    model, ids = load(llama), list(prompt(9, 5))
    for _ in range(20):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    session = TorchEngine.open(llama, {"threads": 1, "dtype": "float32", "compile": compiled, "cache_tokens": 64})
    (generation,) = session.generate([GenerationRequest(prompt_ids=tuple(ids[:9]), max_new_tokens=20)])
    (again,) = session.generate([GenerationRequest(prompt_ids=tuple(ids[:5]), max_new_tokens=4)])  # another length, the same compiled step
    session.close()
    assert list(generation.token_ids) == ids[9:]
    assert list(again.token_ids) == ids[5:9] or len(again.token_ids) == 4


def test_greedy_and_sampled_rows_of_a_batch_continue_as_alone(llama: Path) -> None:
    session = TorchEngine.open(llama, {})
    requests = [
        GenerationRequest(prompt_ids=prompt(20), max_new_tokens=6),
        GenerationRequest(prompt_ids=prompt(20, 1), max_new_tokens=9, temperature=0.8, seed=3),
        GenerationRequest(prompt_ids=prompt(20, 2), max_new_tokens=4, top_logprobs=2),
    ]
    together = session.generate(requests)
    alone = [session.generate([request])[0] for request in requests]
    session.close()
    assert [found.token_ids for found in together] == [found.token_ids for found in alone]


def test_a_model_that_gives_no_numbers_fails_in_batches_too(llama: Path) -> None:
    session = TorchEngine.open(llama, {})
    torch.nn.init.constant_(session.model.lm_head.weight, float("nan"))
    with pytest.raises(StageError, match="no numbers"):
        session.generate([GenerationRequest(prompt_ids=prompt(20), max_new_tokens=2)] * 2)
    session.close()


OTHER_FAMILIES: Mapping[str, tuple[PreTrainedConfig, int]] = {
    "bloom": (BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.4, seq_length=48), 48),
    "mpt": (MptConfig(vocab_size=VOCABULARY, d_model=64, n_layers=2, n_heads=4, max_seq_len=64, initializer_range=0.4), 64),
    "recurrent_gemma": (
        RecurrentGemmaConfig(
            vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=3, intermediate_size=128, num_attention_heads=4, lru_width=64,
            attention_window_size=32,
        ),
        ASSUMED_CONTEXT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_models_that_name_their_context_otherwise_or_not_at_all_open_and_continue(family: str, tmp_path: Path) -> None:
    config, longest = OTHER_FAMILIES[family]
    write_tiny_tokenizer(tmp_path)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    session = TorchEngine.open(tmp_path, {"threads": 1, "dtype": "float32"})
    (found,) = session.generate([GenerationRequest(prompt_ids=prompt(9, 5), max_new_tokens=8)])
    with pytest.raises(SpecError, match=f"context of {longest}"):
        session.generate([GenerationRequest(prompt_ids=prompt(9, 5), max_new_tokens=longest)])
    session.close()
    assert inspect(tmp_path).max_context == longest
    ids = list(prompt(9, 5))
    for _ in range(8):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    assert list(found.token_ids) == ids[9:]


def test_a_model_whose_state_would_be_lost_is_refused_before_it_is_opened_and_by_its_session(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is MambaForCausalLM, which keeps no keys and values to continue a text from; give a transformer"):
        inspect(tmp_path)
    with pytest.raises(InfeasibleError, match="MambaForCausalLM takes no past_key_values to continue a text from"):
        TorchEngine.open(tmp_path, {"threads": 1})


def test_a_padded_batch_continues_each_row_as_alone(llama: Path) -> None:
    session = TorchEngine.open(llama, {"threads": 1, "dtype": "float32"})
    requests = [GenerationRequest(prompt_ids=prompt(length, length), max_new_tokens=8) for length in (3, 40, 17)]
    together = session.generate(requests)
    for request, generation in zip(requests, together, strict=True):
        assert generation.token_ids == session.generate([request])[0].token_ids
    session.close()


def test_a_row_that_has_ended_at_the_end_of_the_context_disturbs_no_longer_one(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.4)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    session = TorchEngine.open(tmp_path, {"threads": 1, "dtype": "float32"})
    requests = [GenerationRequest(prompt_ids=prompt(length), max_new_tokens=new) for length, new in ((30, 2), (2, 20))]
    together = [found.token_ids for found in session.generate(requests)]
    assert together == [session.generate([request])[0].token_ids for request in requests]
    session.close()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kernels", ["flash", "math"])
def test_attention_by_chosen_kernels_continues_alike(llama: Path, kernels: str, compiled: bool) -> None:
    requests = [GenerationRequest(prompt_ids=prompt(length, length), max_new_tokens=12) for length in (9, 4)]
    options = {"threads": 1, "dtype": "float32", "compile": compiled, "cache_tokens": 64}
    usual, chosen = (TorchEngine.open(llama, {**options, "attention": attention}) for attention in (None, kernels))
    for asked in (requests[:1], requests):  # alone, and padded, where a mask keeps some kernels out
        assert [one.token_ids for one in chosen.generate(asked)] == [one.token_ids for one in usual.generate(asked)]
    wanted, found = (np.concatenate(session.score([prompt(40)]).log_probs) for session in (usual, chosen))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for session in (usual, chosen):
        session.close()


def test_attention_kernels_that_need_a_gpu_are_refused_without_one() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InfeasibleError, match="attention kernels cudnn need an NVIDIA GPU and there is none here; leave the option out"):
            TorchEngine.check({"attention": "cudnn"})


def test_a_request_longer_than_the_compiled_cache_is_still_answered(llama: Path) -> None:
    session = TorchEngine.open(llama, {"threads": 1, "compile": True, "cache_tokens": 16})
    (generation,) = session.generate([GenerationRequest(prompt_ids=prompt(30), max_new_tokens=8)])
    session.close()
    assert len(generation.token_ids) == 8


def test_without_a_compiler_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InfeasibleError, match=r"apt install g\+\+"):
        TorchEngine.check({"compile": True})
    TorchEngine.check({"compile": False})


def test_a_compiler_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(InfeasibleError, match="CXX names my-compiler"):
        TorchEngine.check({"compile": True})
    monkeypatch.setenv("CXX", "true")
    TorchEngine.check({"compile": True})


def test_no_model_is_read_from_a_pickle(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_model(folder)
