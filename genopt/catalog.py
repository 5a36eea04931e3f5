"""The one place where tasks, techniques, engines, their sessions, served APIs and environments are registered.

A name maps to "module:Class", so that looking a name up imports only what it names. Other
distributions add entries through the entry-point groups `genopt.tasks`, `genopt.techniques`,
`genopt.engines`, `genopt.sessions`, `genopt.apis` and `genopt.environments`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Literal

from genopt.errors import SpecError

Kind = Literal["tasks", "techniques", "engines", "sessions", "apis", "environments"]

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "tasks": {
        "text-generation": "genopt.tasks.text_generation:TextGeneration",
        "text-to-image": "genopt.tasks.text_to_image:TextToImage",
    },
    "techniques": {
        "torchao_int8_weight_only": "genopt.techniques.torchao_int8:Int8WeightOnly",
        "torchao_int8_dynamic": "genopt.techniques.torchao_int8:Int8Dynamic",
        "onnx_genai": "genopt.techniques.onnx_genai:OnnxGenai",
        "onnx_weight_only": "genopt.techniques.onnx_weight_only:OnnxWeightOnly",
        "torchao_int4_weight_only": "genopt.techniques.torchao_int4:Int4WeightOnly",
        "torchao_float8_weight_only": "genopt.techniques.torchao_float8:Float8WeightOnly",
        "torchao_float8_dynamic": "genopt.techniques.torchao_float8:Float8Dynamic",
        "compressed_tensors": "genopt.techniques.compressed_tensors:CompressedTensors",
        "llmcompressor": "genopt.techniques.llmcompressor:LlmCompressor",
        "importance": "genopt.techniques.importance:Importance",
        "gguf": "genopt.techniques.gguf:Gguf",
        "gguf_as_given": "genopt.techniques.gguf_as_given:GgufAsGiven",
        "openvino_export": "genopt.techniques.openvino_export:OpenVinoExport",
        "openvino_awq": "genopt.techniques.openvino_awq:OpenVinoAwq",
        "magnitude_prune": "genopt.techniques.magnitude_prune:MagnitudePrune",
        "drop_layers": "genopt.techniques.drop_layers:DropLayers",
        "prune_width": "genopt.techniques.prune_width:PruneWidth",
        "distill": "genopt.techniques.distill:Distill",
        "distill_given": "genopt.techniques.distill_given:DistillGiven",
        "attach_draft": "genopt.techniques.attach_draft:AttachDraft",
        "diffusers_int8_weight_only": "genopt.techniques.diffusers_int8:PipelineInt8WeightOnly",
        "diffusers_int8_dynamic": "genopt.techniques.diffusers_int8:PipelineInt8Dynamic",
        "diffusers_int4_weight_only": "genopt.techniques.diffusers_int4:PipelineInt4WeightOnly",
        "diffusers_float8_weight_only": "genopt.techniques.diffusers_float8:PipelineFloat8WeightOnly",
        "diffusers_float8_dynamic": "genopt.techniques.diffusers_float8:PipelineFloat8Dynamic",
        "diffusers_drop_blocks": "genopt.techniques.diffusers_drop_blocks:DropBlocks",
        "diffusers_distill_steps": "genopt.techniques.diffusers_distill_steps:DistillSteps",
        "diffusers_onnx": "genopt.techniques.diffusers_onnx:DiffusersOnnx",
        "diffusers_magnitude_prune": "genopt.techniques.diffusers_magnitude_prune:DenoiserMagnitudePrune",
        "diffusers_lora": "genopt.techniques.diffusers_lora:Lora",
        "diffusers_tiny_vae": "genopt.techniques.diffusers_tiny_vae:TinyVae",
    },
    "engines": {
        "torch": "genopt.engines.torch_engine:TorchEngine",
        "diffusers": "genopt.engines.diffusers_engine:DiffusersEngine",
        "llamacpp": "genopt.engines.llamacpp:LlamaCppEngine",
        "openvino": "genopt.engines.openvino:OpenVinoEngine",
        "ort_diffusers": "genopt.engines.ort_diffusers:OrtDiffusersEngine",
        "ort_genai": "genopt.engines.ort_genai:OrtGenaiEngine",
        "vllm": "genopt.engines.vllm:VllmEngine",
        "vllm_cpu": "genopt.engines.vllm:VllmCpuEngine",
    },
    "sessions": {
        "text": "genopt.text_calls:TextCalls",
        "image": "genopt.image_calls:ImageCalls",
    },
    "apis": {
        "text": "genopt.serving.text_api:TextApi",
        "image": "genopt.serving.image_api:ImageApi",
    },
    "environments": {
        "llamacpp": "genopt.environments.built_in:LLAMACPP",
        "llmcompressor": "genopt.environments.built_in:LLMCOMPRESSOR",
        "onnx": "genopt.environments.built_in:ONNX",
        "openvino": "genopt.environments.built_in:OPENVINO",
        "vllm": "genopt.environments.built_in:VLLM",
        "vllm-cpu": "genopt.environments.built_in:VLLM_CPU",
    },
}


def names(kind: Kind) -> dict[str, str]:
    """All registered names of a kind with their import paths; a name registered twice is an error."""
    found = dict(BUILT_IN[kind])
    for point in _registered(kind, tuple(sys.path)):
        if point.name in found:
            raise SpecError(f"{kind} entry {point.name!r} is registered twice; rename the one in {point.value}.")
        found[point.name] = point.value
    return found


@cache
def _registered(kind: Kind, path: tuple[str, ...]) -> EntryPoints:
    """What distributions register that are found on this path; kept, as it takes 18 ms to read, and a run asks more than a hundred times."""
    return entry_points(group=f"genopt.{kind}")


def load(kind: Kind, name: str) -> Any:
    """Imports and returns the class behind a name; of environments the value itself.

    Raises:
        SpecError: The name is not registered.
    """
    known = names(kind)
    if name not in known:
        raise SpecError(f"There is no {kind[:-1]} {name!r}; choose one of {', '.join(sorted(known))}.")
    module, _, attribute = known[name].partition(":")
    return vars(importlib.import_module(module))[attribute]
