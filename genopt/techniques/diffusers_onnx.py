"""Exports the parts of a text-to-image pipeline to ONNX through optimum-onnx, in an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from genopt.errors import InfeasibleError
from genopt.models import pipeline_sampling
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import MATRICES, Footprint
from genopt.search.space import Tunable
from genopt.techniques.base import Progress, Transform, TransformContext

INDEX = "model_index.json"
PIPELINES = ("LatentConsistencyModelPipeline", "StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""What optimum-onnx both exports and runs."""
NOT_RUN = "vae_encoder"
"""Exported too, and of no use where images begin with noise."""
TEXT_MODEL = "text_model."
"""How the names of a CLIP text encoder's weights begin in transformers before 5."""


class DiffusersOnnxParams(Record):
    """Parameters.

    Attributes:
        weights: Numbers of the denoiser's matrices; int8 also rounds what meets them, with a scale found while running.
    """

    weights: Literal["fp32", "int8"] = "fp32"


class DiffusersOnnx(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "diffusers_onnx"
    version = 1
    phase = 50
    requires = frozenset({"diffusers"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"onnx_diffusers"})
    removes = frozenset({"diffusers"})
    tunables = (Tunable(name="weights", choices=("fp32", "int8"), words=("", "int8")),)
    environment = "onnx"

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(DiffusersOnnxParams, params, "diffusers_onnx")
        try:
            found = json.loads((source / INDEX).read_text(encoding="utf-8"))["_class_name"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InfeasibleError(f"{source} has no readable {INDEX}, so it is no pipeline that could be exported; give another model.") from None
        if found not in PIPELINES:
            raise InfeasibleError(f"optimum-onnx does not run {found}; leave diffusers_onnx to {', '.join(PIPELINES)}.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`."""
        if parse_settings(DiffusersOnnxParams, params, "diffusers_onnx").weights == "fp32":
            return before.stored(32.0)
        return before.stored(32.0).stored(8.0, families=MATRICES).risked(0.5)

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        import torch

        weights = parse_settings(DiffusersOnnxParams, params, "diffusers_onnx").weights
        torch.set_num_threads(context.threads)
        with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".onnx-") as scratch:
            readable = Path(scratch, "source")
            readable.mkdir()
            _lay_out(source, readable)
            exported = Path(scratch, "exported")
            progress("exporting the pipeline's parts to ONNX")
            _export(readable, exported)
            if weights == "int8":
                progress("rounding the denoiser's matrices to 8 bits")
                _round(exported)
            shutil.rmtree(exported / NOT_RUN, ignore_errors=True)
            index = json.loads((readable / INDEX).read_text(encoding="utf-8"))
            for name in (name for name in index if name.startswith("tokenizer") and (source / name).is_dir()):
                shutil.copytree(source / name, exported / name, dirs_exist_ok=True)
            _write_json(exported / INDEX, index)
            if (source / pipeline_sampling.FILE).is_file():
                shutil.copyfile(source / pipeline_sampling.FILE, exported / pipeline_sampling.FILE)
            for path in exported.glob("*/config.json"):
                _write_json(path, {name: value for name, value in json.loads(path.read_text(encoding="utf-8")).items() if name != "_name_or_path"})
            for path in exported.iterdir():
                os.rename(path, destination / path.name)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _lay_out(source: Path, folder: Path) -> None:
    """The pipeline as links, with tokenizers and text encoders as this environment's transformers names them."""
    from transformers import AutoTokenizer

    index: dict[str, Any] = json.loads((source / INDEX).read_text(encoding="utf-8"))
    for path in source.iterdir():
        if path.name != INDEX and not path.name.startswith("text_encoder"):
            (folder / path.name).symlink_to(path.resolve())
    for name, entry in index.items():
        if not isinstance(entry, list) or not entry[1]:
            continue
        if name.startswith("tokenizer"):
            index[name] = ["transformers", type(AutoTokenizer.from_pretrained(source / name, local_files_only=True)).__name__]
        if name.startswith("text_encoder"):
            _lay_out_encoder(source / name, folder / name)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def _lay_out_encoder(source: Path, folder: Path) -> None:
    """A text encoder with the names of weights that transformers before 5 knows: it would begin with random ones in place of others."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).symlink_to(path.resolve())
            continue
        weights = load_file(path)
        named = any(name.startswith(TEXT_MODEL) for name in weights)
        renamed = {name if named or name.startswith("text_projection") else TEXT_MODEL + name: tensor for name, tensor in weights.items()}
        save_file(renamed, folder / path.name, metadata={"format": "pt"})


def _export(source: Path, destination: Path) -> None:
    import torch
    import transformers
    from diffusers import DiffusionPipeline
    from optimum.exporters.onnx import onnx_export_from_model

    index: dict[str, Any] = json.loads((source / INDEX).read_text(encoding="utf-8"))
    encoders = {}
    for name in (name for name in index if name.startswith("text_encoder") and (source / name).is_dir()):
        made = getattr(transformers, index[name][1])
        encoders[name], info = made.from_pretrained(
            source / name, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise InfeasibleError(
                f"The {name} of this pipeline names its weights in a way that transformers {transformers.__version__} of the environment onnx "
                "does not read; leave diffusers_onnx out."
            )
    pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, **encoders)
    onnx_export_from_model(pipeline, output=destination, task="text-to-image", do_validation=False, no_post_process=True)


def _round(folder: Path) -> None:
    """Replaces the denoiser's graph by one whose constant matrices are of 8 bits, with a scale per output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    (graph,) = (folder / name / "model.onnx" for name in ("unet", "transformer") if (folder / name).is_dir())
    rounded = graph.with_name("rounded.onnx")
    large = any(path != graph and path.stat().st_size > 0 for path in graph.parent.glob("model.onnx*"))
    quantize_dynamic(
        graph, rounded, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=large,
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    for path in graph.parent.glob("model.onnx*"):
        path.unlink()
    os.rename(rounded, graph)
