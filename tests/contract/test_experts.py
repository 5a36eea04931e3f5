"""Techniques that reach single matrices refuse models most of whose weights are fused experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from genopt.errors import InfeasibleError
from genopt.models.matrices import share
from genopt.techniques.base import TransformContext
from genopt.techniques.compressed_tensors import CompressedTensors
from genopt.techniques.importance import Importance
from genopt.techniques.magnitude_prune import MagnitudePrune
from genopt.techniques.torchao_int8 import Int8WeightOnly

SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4), "qwen": Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=64),
}  # fmt: skip
TECHNIQUES = [MagnitudePrune, CompressedTensors, Int8WeightOnly, Importance]


def written(config: Any, folder: Path, **changes: Any) -> Path:
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    found = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**found, **changes}))
    return folder


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_experts_of_transformers_own_are_told_by_the_configuration(family: str, technique: Any, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=f"experts.*--exclude {technique.name}.*fp8"):
        technique.check(written(EXPERTS[family], tmp_path), {})


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_where_the_configuration_does_not_tell_the_loaded_model_does(technique: Any, tmp_path: Path) -> None:
    source, made, calibration = written(EXPERTS["mixtral"], tmp_path / "source", auto_map={}), tmp_path / "made", tmp_path / "calibration.parquet"
    technique.check(source, {})
    made.mkdir()
    pq.write_table(pa.table({"ids": pa.array([list(range(32))], pa.list_(pa.int32()))}), calibration)
    context = TransformContext(original=str(source), calibration=str(calibration), seed=0, threads=1, time_limit_s=100)
    params = {"scheme": "W8A8"} if technique is CompressedTensors else {}
    with pytest.raises(InfeasibleError, match=f"experts.*--exclude {technique.name}"):
        technique.apply(source, made, params, context, lambda _: None)
    assert not list(made.iterdir())


def test_the_share_tells_them_apart() -> None:
    plain = [LlamaConfig(**SIZES), GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4)]
    assert [share(AutoModelForCausalLM.from_config(config)) for config in plain] == [1.0, 1.0]
    assert max(share(AutoModelForCausalLM.from_config(config)) for config in EXPERTS.values()) < 0.5
