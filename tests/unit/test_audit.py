"""The audit reads sizes and headers only."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from genopt.quality.audit import audit


def write_safetensors(path: Path, data: bytes, *, claimed: int | None = None) -> None:
    end = len(data) if claimed is None else claimed
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_a_sound_artifact_has_no_problems_and_its_bits_per_parameter(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", b"\1" * 1000)
    (tmp_path / "config.json").write_text("{}")
    found = audit(tmp_path, 500)
    assert found.problems == ()
    assert found.bytes == (tmp_path / "model.safetensors").stat().st_size
    assert found.effective_bits == pytest.approx(8 * found.bytes / 500)


@pytest.mark.parametrize("names", [("model.onnx", "model.onnx.data"), ("model.onnx", "model.onnx_data"), ("model.gguf",)])
def test_all_kinds_of_weight_files_count(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"\0" * 300)
    found = audit(tmp_path, 1200)
    assert (found.bytes, found.problems) == (300 * len(names), ())


def test_the_parts_of_a_pipeline_count_but_not_copies_beside_a_model(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        write_safetensors(tmp_path / part / "model.safetensors", b"\1" * 100)
    parts = audit(tmp_path, 100)
    assert parts.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    write_safetensors(tmp_path / "model.safetensors", b"\1" * 50)
    assert audit(tmp_path, 100).bytes == (tmp_path / "model.safetensors").stat().st_size


def test_only_what_is_loaded_counts(tmp_path: Path) -> None:
    """Not the same weights as a maker lays them out, in another precision or in another format."""
    for name in ("model-1.safetensors", "model-2.safetensors", "consolidated.safetensors", "model.fp16.safetensors"):
        write_safetensors(tmp_path / name, b"\1" * 100)
    (tmp_path / "model.gguf").write_bytes(b"\0" * 100)
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = audit(tmp_path, 100)
    assert (found.bytes, found.problems) == (2 * (tmp_path / "model-1.safetensors").stat().st_size, ())
    (tmp_path / "model-2.safetensors").unlink()
    assert audit(tmp_path, 100).problems == ("model-2.safetensors is missing though the index names it",)


def test_of_a_pipeline_its_parts_as_they_are_loaded_count(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    for name, size in (("all-in-one", 400), ("unet/diffusion_pytorch_model", 200), ("unet/diffusion_pytorch_model.fp16", 100)):
        write_safetensors(tmp_path / f"{name}.safetensors", b"\1" * size)
    assert audit(tmp_path, 100).bytes == (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


def test_an_artifact_without_weights_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = audit(tmp_path, 100)
    assert (found.bytes, found.effective_bits, found.problems) == (0, 0.0, ("it holds no weight file",))


def test_truncated_weights_are_a_problem(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", b"\1" * 90, claimed=100)
    assert audit(tmp_path, 100).problems == ("model.safetensors holds 90 bytes of weights where its header claims 100",)


@pytest.mark.parametrize("content", [b"", b"\1\2", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 500) + b"{}"])
def test_a_header_that_is_cut_off_is_a_problem(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert audit(tmp_path, 100).problems == ("model.safetensors is cut off within its header",)


@pytest.mark.parametrize("header", [b"not json", b"[1]", b'{"weight": {}}', b'{"weight": {"data_offsets": [0]}}', b"\xff\xfe\xfd"])
def test_a_corrupt_header_is_a_problem(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert audit(tmp_path, 100).problems == ("model.safetensors has a header that cannot be read",)


def test_an_unknown_parameter_count_gives_no_bits(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", b"\1" * 10)
    assert audit(tmp_path, 0).effective_bits == 0.0
