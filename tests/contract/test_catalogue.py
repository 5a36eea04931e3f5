"""Every entry of the catalogue keeps its contract, on a tiny random Llama; an entry without a case here fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genopt import catalog
from genopt.models.gguf import GIVEN, GIVEN_TRAIT, MAGIC
from genopt.plan import JsonValue
from genopt.process import run_stage
from genopt.spec import build
from genopt.techniques.base import TransformContext
from genopt.testing.contracts import check_engine, check_space, check_technique, runs_here
from genopt.testing.image_contracts import check_image_engine
from genopt.testing.tiny_models import CONTEXT, VOCABULARY, write_tiny_llama
from genopt.testing.tiny_pipelines import write_tiny_lora, write_tiny_stable_diffusion, write_tiny_vae

GIVEN_MODEL = "0" * 64
"""Stands for the digest of the model that a technique is given."""
TECHNIQUES: dict[str, tuple[str, dict[str, JsonValue]]] = {
    "torchao_int8_weight_only": ("hf", {}),
    "torchao_int8_dynamic": ("hf", {}),
    "torchao_int4_weight_only": ("hf", {"group_size": 32}),
    "torchao_float8_weight_only": ("hf", {}),
    "torchao_float8_dynamic": ("hf", {}),
    "compressed_tensors": ("hf", {"scheme": "W4A16", "group_size": 32}),
    "llmcompressor": ("hf", {"method": "gptq", "scheme": "W4A16", "group_size": 32, "num_calibration_samples": 4, "max_seq_length": 32}),
    "importance": ("hf", {"calibration_tokens": 128}),
    "gguf": ("hf", {"format": "Q8_0"}),
    "gguf_as_given": ("given_gguf", {}),
    "openvino_export": ("hf", {"weights": "int8"}),
    "openvino_awq": ("hf", {"num_calibration_samples": 4, "max_seq_length": 32}),
    "onnx_genai": ("hf", {}),
    "onnx_weight_only": ("onnx_genai", {"head": 32, "down_proj": 4, "edge_layers": 8}),
    "magnitude_prune": ("hf", {"sparsity": 0.5}),
    "drop_layers": ("hf", {"count": 1, "calibration_tokens": 128}),
    "prune_width": ("hf", {"neurons": 0.25, "heads": 0.5, "calibration_tokens": 128}),
    "distill": ("hf", {"steps": 2, "max_seq_length": 32}),
    "distill_given": ("hf", {"given": GIVEN_MODEL, "steps": 2, "max_seq_length": 32}),
    "attach_draft": ("hf", {"given": GIVEN_MODEL}),
    "diffusers_int8_weight_only": ("diffusers", {"least_features": 16}),
    "diffusers_int8_dynamic": ("diffusers", {"components": "all"}),
    "diffusers_int4_weight_only": ("diffusers", {"group_size": 32}),
    "diffusers_float8_weight_only": ("diffusers", {}),
    "diffusers_float8_dynamic": ("diffusers", {}),
    "diffusers_drop_blocks": ("diffusers", {"prompts": 1, "steps": 2}),
    "diffusers_distill_steps": ("diffusers", {"steps": 2, "trajectories": 2, "updates": 1, "learning_rate": 1e-9}),
    "diffusers_onnx": ("diffusers", {"weights": "int8"}),
    "diffusers_magnitude_prune": ("diffusers", {"sparsity": 0.3}),
    "diffusers_lora": ("diffusers", {"given": GIVEN_MODEL}),
    "diffusers_tiny_vae": ("diffusers", {"given": GIVEN_MODEL}),
}
"""By name: a trait of the source, and parameters."""
ENGINES: dict[str, tuple[str, dict[str, JsonValue]]] = {
    "torch": ("hf", {"threads": 2, "compile": True, "cache_tokens": 128}),
    "llamacpp": ("gguf", {"threads": 2}),
    "openvino": ("openvino", {"threads": 2}),
    "ort_diffusers": ("onnx_diffusers", {"threads": 2, "guidance_end": 0.5}),
    "ort_genai": ("onnx_genai", {"threads": 2}),
    "vllm": ("hf", {"threads": 2, "precision": "float32"}),
    "vllm_cpu": ("hf", {"threads": 2, "precision": "float32"}),
    "diffusers": ("diffusers", {"threads": 2, "channels_last": True, "guidance_end": 0.5}),
}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One artifact by trait."""
    llama, onnx = write_tiny_llama(tmp_path_factory.mktemp("llama")), tmp_path_factory.mktemp("onnx")
    catalog.load("techniques", "onnx_genai").apply(llama, onnx, {}, context(llama, None), lambda _: None)
    given = tmp_path_factory.mktemp("given")
    shutil.copytree(llama, given, dirs_exist_ok=True)
    (given / GIVEN).parent.mkdir()
    (given / GIVEN).write_bytes(MAGIC + bytes([3, 0, 0, 0]))
    pipeline = write_tiny_stable_diffusion(tmp_path_factory.mktemp("pipeline"))
    found = {"hf": llama, "onnx_genai": onnx, GIVEN_TRAIT: given, "diffusers": pipeline}
    for name, source, trait in (("gguf", "hf", "gguf"), ("openvino_export", "hf", "openvino"), ("diffusers_onnx", "diffusers", "onnx_diffusers")):
        if runs_here("techniques", name):
            found[trait] = convert(name, found[source], tmp_path_factory.mktemp(name))
    return found


def convert(technique: str, source: Path, destination: Path) -> Path:
    """Applies a technique in the interpreter of its environment."""
    payload = {
        "technique": technique, "source": str(source), "destination": str(destination), "params": {},
        "context": context(source, None).model_dump(mode="json", exclude={"time_limit_s"}),
    }  # fmt: skip
    where = catalog.load("techniques", technique).environment
    run_stage("transform", payload, log=destination.with_suffix(".log"), timeout_s=300, threads=2, where=where)
    return destination


@pytest.fixture(scope="session")
def calibrations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Calibration data by trait of what is calibrated with it."""
    folder = tmp_path_factory.mktemp("calibration")
    rows = [[(7 * row + 3 * place) % 256 for place in range(128)] for row in range(8)]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), folder / "text.parquet")
    pq.write_table(pa.table({"prompt": ["a photo", "a digit", "a photo of a digit"]}), folder / "images.parquet")
    return {"hf": folder / "text.parquet", "diffusers": folder / "images.parquet"}


@pytest.fixture(scope="session")
def given_models(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What techniques are given beside the model, by technique."""
    return {
        "diffusers_tiny_vae": write_tiny_vae(tmp_path_factory.mktemp("vae")),
        "diffusers_lora": write_tiny_lora(tmp_path_factory.mktemp("lora"), sources["diffusers"]),
        "distill_given": write_tiny_llama(tmp_path_factory.mktemp("student"), layers=1),
        "attach_draft": write_tiny_llama(tmp_path_factory.mktemp("draft"), layers=1),
    }


def context(original: Path, calibration: Path | None, given: Path | None = None) -> TransformContext:
    found = str(calibration) if calibration is not None else None
    models = {GIVEN_MODEL: str(given)} if given is not None else {}
    return TransformContext(original=str(original), calibration=found, seed=0, threads=2, time_limit_s=300, given=models)


def test_every_entry_has_a_case_here() -> None:
    """Those of environments that are not built here, or of GPUs that are not here, are only looked at."""
    assert TECHNIQUES.keys() == catalog.BUILT_IN["techniques"].keys()
    assert ENGINES.keys() == catalog.BUILT_IN["engines"].keys()


@pytest.mark.parametrize("name", [name for name in catalog.BUILT_IN["techniques"] if runs_here("techniques", name)])
def test_every_technique_keeps_its_contract(
    name: str, sources: dict[str, Path], calibrations: dict[str, Path], given_models: dict[str, Path], tmp_path: Path
) -> None:  # fmt: skip
    trait, params = TECHNIQUES[name]
    technique = catalog.load("techniques", name)
    assert trait in technique.requires
    needed = calibrations[trait] if technique.needs_calibration else None
    check_technique(name, sources[trait], params, context(sources[trait], needed, given_models.get(name)), tmp_path)


@pytest.mark.parametrize("name", [name for name in catalog.BUILT_IN["engines"] if runs_here("engines", name)])
def test_every_engine_keeps_its_contract(name: str, sources: dict[str, Path]) -> None:
    trait, options = ENGINES[name]
    assert trait in catalog.load("engines", name).accepts
    if catalog.load("engines", name).modality == "image":
        check_image_engine(name, sources[trait], options)
    else:
        check_engine(name, sources[trait], options, vocabulary=VOCABULARY, context=CONTEXT)


@pytest.mark.parametrize("name", catalog.BUILT_IN["tasks"])
def test_every_task_searches_a_space_that_holds_together(name: str) -> None:
    task = catalog.load("tasks", name)
    check_space(task)
    for plan in (*task.references(), *task.catalogue(dict.fromkeys(task.given, GIVEN_MODEL), 600.0)):
        assert build({"model": "any", "include": [plan.name]}).wants(plan)
