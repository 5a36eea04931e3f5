"""Exports a Hugging Face model to ONNX Runtime GenAI's format, at full precision."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from genopt.errors import InfeasibleError, StageError
from genopt.plan import JsonValue, Record, parse_settings
from genopt.search.footprint import Footprint
from genopt.techniques.base import Progress, Transform, TransformContext

BUILDER = "onnxruntime_genai.models.builder"
UNSUPPORTED = "is not currently supported"
"""How the builder's NotImplementedError about an architecture ends."""


class OnnxGenaiParams(Record):
    """Parameters of the export.

    Attributes:
        precision: Type of weights and cache.
        device: Device that the graph is made for.
    """

    precision: Literal["fp32"] = "fp32"
    device: Literal["cpu"] = "cpu"


class OnnxGenai(Transform):
    """See `genopt.techniques.base.Transform`."""

    name = "onnx_genai"
    version = 1
    phase = 50
    requires = frozenset({"hf"})
    excludes = frozenset({"quantized"})
    adds = frozenset({"onnx_genai"})
    removes = frozenset({"hf"})

    @staticmethod
    def check(source: Path, params: dict[str, JsonValue]) -> None:
        """See `Transform.check`."""
        parse_settings(OnnxGenaiParams, params, "onnx_genai")
        missing = [name for name in ("onnxruntime_genai", "onnx", "onnx_ir") if importlib.util.find_spec(name) is None]
        if missing:
            raise InfeasibleError(f"The export needs {' and '.join(missing)}; install them with: pip install onnxruntime-genai onnx onnx-ir.")
        if not (source / "config.json").is_file():
            raise InfeasibleError(f"{source} has no config.json; only Hugging Face folders can be exported.")

    @staticmethod
    def footprint(before: Footprint, params: dict[str, JsonValue]) -> Footprint:
        """See `Transform.footprint`: everything is fp32, the cache too."""
        return before.stored(32.0).model_copy(update={"state_bytes": 2 * before.state_bytes})

    @staticmethod
    def apply(source: Path, destination: Path, params: dict[str, JsonValue], context: TransformContext, progress: Progress) -> None:
        """See `Transform.apply`."""
        chosen = parse_settings(OnnxGenaiParams, params, "onnx_genai")
        progress(f"exporting to ONNX ({chosen.precision})")
        with tempfile.TemporaryDirectory(prefix=".export-", dir=destination) as scratch:
            _build(source, destination, chosen, Path(scratch), context.threads)
        if not (destination / "model.onnx").is_file():
            raise StageError("The ONNX builder ended without a model; use another engine for this model.")


def _build(source: Path, destination: Path, params: OnnxGenaiParams, scratch: Path, threads: int) -> None:
    """Runs the builder in a process of its own: it expects its folder on the path and modules with common names.

    Raises:
        InfeasibleError: It does not know the architecture.
        StageError: It failed; its last line is the reason.
    """
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or package.submodule_search_locations is None:
        raise InfeasibleError("The export needs onnxruntime-genai; install it with: pip install onnxruntime-genai.")
    environment = {
        **os.environ, "PYTHONPATH": str(Path(package.submodule_search_locations[0], "models")), "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
        "CUDA_VISIBLE_DEVICES": "" if params.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }  # fmt: skip
    command = [
        sys.executable, "-P", "-m", BUILDER, "-i", str(source), "-o", str(destination), "-p", params.precision, "-e", params.device,
        "-c", str(scratch / "cache"), "--extra_options", "windowed_kv_cache=false",
    ]  # fmt: skip
    log = scratch / "builder.log"
    with log.open("wb") as output:
        code = subprocess.run(command, env=environment, cwd=scratch, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False).returncode
    if code == 0:
        return
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    sys.stderr.write("\n".join(said[-40:]) + "\n")
    reason = said[-1] if said else f"exit code {code}"
    if UNSUPPORTED in reason:
        raise InfeasibleError(f"ONNX Runtime GenAI cannot export {_architecture(source)}; use another engine for this model.")
    raise StageError(f"The ONNX export of {_architecture(source)} failed ({reason[:200]}); use another engine for this model.")


def _architecture(source: Path) -> str:
    named = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures") or ["a model without a named architecture"]
    return str(named[0])
