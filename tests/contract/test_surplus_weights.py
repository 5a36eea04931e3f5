"""A clone of a whole repository carries its weights more than once; techniques read what is loaded, and hand on nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from safetensors.torch import load_file, save_file

from genopt.engines.vllm_options import DRAFT
from genopt.quality.audit import audit
from genopt.techniques import importance
from genopt.techniques.attach_draft import AttachDraft
from genopt.techniques.base import TransformContext
from genopt.techniques.gguf_file import write_gguf
from genopt.techniques.importance import Importance
from genopt.techniques.magnitude_prune import MagnitudePrune
from genopt.testing.tiny_models import write_tiny_llama

SURPLUS = (
    "consolidated.safetensors",
    "model.gguf",
    "tf_model.h5",
    "flax_model.msgpack",
    "consolidated.00.pth",
    "pytorch_model.bin",
    ".gitattributes",
)
COMPANIONS = ("LICENSE", "own.py", "chat_template.jinja", "qwen.tiktoken", "merges.txt", "spiece.model")
SHARDED = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_llama(tmp_path_factory.mktemp("plain"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard, metadata={"format": "pt"})
    (folder / SHARDED).write_text(json.dumps({"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}))
    return folder


@pytest.fixture(scope="module")
def clone(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    for name in (*SURPLUS, *COMPANIONS):
        (folder / name).write_text("x")
    weights = load_file(plain / "model-1.safetensors")
    save_file({f"layers.{number}.wq.weight": tensor for number, tensor in enumerate(weights.values())}, folder / "consolidated.safetensors")
    return folder


def made(technique: Any, source: Path, destination: Path, params: dict[str, Any], **given: str) -> Path:
    destination.mkdir()
    calibration = destination.with_suffix(".parquet")
    pq.write_table(pa.table({"ids": pa.array([list(range(32))], pa.list_(pa.int32()))}), calibration)
    context = TransformContext(original=str(source), calibration=str(calibration), seed=0, threads=1, time_limit_s=100, given=given)
    technique.apply(source, destination, params, context, lambda _: None)
    return destination


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("technique", [MagnitudePrune, Importance])
def test_artifacts_get_what_belongs_to_a_model_and_no_second_weights(technique: Any, plain: Path, clone: Path, tmp_path: Path) -> None:
    before, after = (made(technique, source, tmp_path / name, {}) for source, name in ((plain, "before"), (clone, "after")))
    assert names(after) == names(before) | set(COMPANIONS)
    assert audit(after, 0).bytes == audit(before, 0).bytes
    assert (importance.FILE in names(after)) is (technique is Importance)
    shutil.copytree(after, tmp_path / "again")
    assert names(made(MagnitudePrune, tmp_path / "again", tmp_path / "pruned", {})) >= set(COMPANIONS)


def test_a_draft_is_attached_without_its_second_weights(plain: Path, clone: Path, tmp_path: Path) -> None:
    attached = made(AttachDraft, plain, tmp_path / "made", {"given": "0" * 64}, **{"0" * 64: str(clone)})
    assert names(attached / DRAFT) == {"config.json", "model-1.safetensors", "model-2.safetensors", SHARDED}


def test_a_gguf_file_is_written_of_what_the_index_names(plain: Path, clone: Path, tmp_path: Path) -> None:
    for source, name in ((plain, "plain.gguf"), (clone, "clone.gguf")):
        write_gguf(source, tmp_path / name)
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "clone.gguf").read_bytes()
