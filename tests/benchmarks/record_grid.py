"""Records the grid of `grid.py`: quality, bytes and speed of each point; goes on where it stopped.

    python tests/benchmarks/record_grid.py FOLDER quality [--minutes 4]   # not sensitive to what else the machine does
    python tests/benchmarks/record_grid.py FOLDER sensitivity             # what the parts of the model bear
    python tests/benchmarks/record_grid.py FOLDER speed [--minutes 4]     # best on a quiet machine; interleaved with a reference all the same

Exit code 0 when all is recorded, 3 when the minutes ended before. FOLDER keeps the model, the texts and the quantized matrices.

A candidate costs seconds because nothing is quantized twice: each (layers, block size, zero points) is quantized once to 8 and once to 4
bits, and a mixed candidate is a small graph that points into both files of weights. That gives the numbers of the technique itself,
which `--check` verifies on one mixed candidate.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from grid import RECORDS, SENSITIVITY, grid, name, recorded, uniform, weights_of

from genopt import catalog
from genopt.engines.base import GenerationRequest
from genopt.engines.ort_genai import OrtGenaiOptions, OrtGenaiSession
from genopt.engines.torch_options import TorchOptions
from genopt.measure import machine
from genopt.models.resolve import resolve
from genopt.plan import Plan
from genopt.quality import reference
from genopt.quality.sensitivity import SensitivityRequest, measure
from genopt.search.space import Point
from genopt.tasks.text_data import TextSet, prepare
from genopt.tasks.text_generation import TextGeneration
from genopt.techniques.base import TransformContext
from genopt.techniques.onnx_embedding import shrink_embedding
from genopt.techniques.onnx_weight_only import SMALL, WeightOnlyParams, node_bits, quantize

TOKENS = 2_048
ROUNDS = 3
NEW_TOKENS = 12
PROMPT = 16
THREADS = 2
REFERENCE: dict[str, Any] = {"engine": "ort_genai", "onnx_weight_only": True}
"""What every candidate is timed against: 8 bits everywhere."""


class Texts:
    """The model, its texts, and what it says about them.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.model = Path(resolve("smollm2-135m", cache=folder / "models", progress=print).path)
        prepared = folder / "data" / "text_set.json"
        if not prepared.exists():
            prepare({"model": str(self.model), "eval_data": None, "calib_data": None, "prompts": None, "seed": 0, "prompt_tokens": PROMPT,
                     "output_tokens": 32, "max_context": 8192, "destination": str(prepared.parent)}, 600.0)  # fmt: skip
        self.set = TextSet.model_validate_json(prepared.read_text(encoding="utf-8"))
        self.windows = self.set.windows[: -(-TOKENS // len(self.set.windows[0]))]
        self.reference = folder / "reference.parquet"
        if not self.reference.exists():
            from genopt.engines.torch_session import TorchSession

            partial = self.reference.with_suffix(".partial")
            reference.record(TorchSession(self.model, TorchOptions(threads=THREADS)), self.windows, partial, {})
            partial.rename(self.reference)


class Variants:
    """Quantized matrices by layers, block size and zero points, and candidates put together from them.

    Args:
        folder: Where they are kept.
        texts: The model.
    """

    def __init__(self, folder: Path, texts: Texts) -> None:
        self._folder, self._texts = folder, texts
        self._graphs: dict[tuple[Path, int], Any] = {}

    def folder_of(self, plan: Plan) -> Path:
        """A folder with the candidate of a plan; the last one's is gone."""
        import onnx

        *_, step = plan.steps
        params = WeightOnlyParams.model_validate(step.params)
        base = self._quantized(plan, params)
        graphs = {bits: self._graph(base, bits) for bits in (4, 8)}
        wanted = node_bits(json.loads((base / "nodes.json").read_text(encoding="utf-8")), params)
        model = onnx.ModelProto()
        model.CopyFrom(graphs[8])
        low = {node.name.removesuffix("_Q4"): node for node in graphs[4].graph.node if node.op_type == "MatMulNBits"}
        stored = {tensor.name: tensor for tensor in graphs[4].graph.initializer}
        replaced = {node_name for node_name, bits in wanted.items() if bits == 4}
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            own = node.name.removesuffix("_Q8")
            if node.op_type != "MatMulNBits" or own not in replaced:
                continue
            for unused in node.input[1:]:
                if unused:
                    model.graph.initializer.remove(tensors.pop(unused))
            node.CopyFrom(low[own])
            for place, used in enumerate(low[own].input[1:], start=1):
                if used:
                    tensor = model.graph.initializer.add()
                    tensor.CopyFrom(stored[used])
                    tensor.name = node.input[place] = f"{used}/4"
        candidate = base / "model.onnx"
        candidate.write_bytes(model.SerializeToString())
        return base

    def _graph(self, base: Path, bits: int) -> Any:
        import onnx

        if (base, bits) not in self._graphs:
            self._graphs[base, bits] = onnx.load_model(str(base / f"all-{bits}.onnx"), load_external_data=False)
        return self._graphs[base, bits]

    def _quantized(self, plan: Plan, params: WeightOnlyParams) -> Path:
        """The folder with all matrices at 8 and at 4 bits."""
        import onnx

        dropped = sum(step.technique == "drop_layers" for step in plan.steps)
        base = self._folder / f"drop{dropped}-g{params.block_size}-{'sym' if params.symmetric else 'asym'}"
        if (base / "nodes.json").exists():
            return base
        exported = self._exported(plan, dropped)
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        for path in exported.iterdir():
            if path.is_file() and not path.name.startswith("model.onnx"):
                shutil.copyfile(path, base / path.name)
        for bits in (4, 8):
            print(f"quantizing {base.name} to {bits} bits", flush=True)
            model = onnx.load_model(str(exported / "model.onnx"))
            nodes = [node.name for node in model.graph.node if node.op_type == "MatMul"]
            quantized = quantize(model, dict.fromkeys(nodes, bits), params)
            shrink_embedding(quantized)
            onnx.save_model(quantized, str(base / f"all-{bits}.onnx"), save_as_external_data=True, location=f"all-{bits}.data", size_threshold=SMALL)
        (base / "nodes.json").write_text(json.dumps(nodes), encoding="utf-8")
        return base

    def _exported(self, plan: Plan, dropped: int) -> Path:
        """The exported model after the steps before its quantization."""
        source = self._texts.model
        for step in plan.steps[:-1]:
            target = self._folder / f"{step.technique}-{dropped}"
            if not (target / ".done").exists():
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir(parents=True)
                context = TransformContext(
                    original=str(self._texts.model), calibration=self._texts.set.calibration, seed=0, threads=THREADS, time_limit_s=600
                )
                catalog.load("techniques", step.technique).apply(source, target, step.params, context, print)
                (target / ".done").touch()
            source = target
        return source


def weight_bytes(folder: Path) -> int:
    """Bytes of all tensors of a candidate, by its graph."""
    import onnx

    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    sizes = []
    for tensor in model.graph.initializer:
        length = next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), None)
        sizes.append(length if length is not None else tensor.ByteSize())
    return sum(sizes)


def quality(session: OrtGenaiSession, texts: Texts) -> dict[str, float]:
    """Likelihood ratio and divergence on the recorded windows."""
    found = reference.compare(session, texts.windows, texts.reference)
    ours, theirs, kl = (np.concatenate([np.array(row) for row in rows]) for rows in (found.log_probs, found.reference_log_probs, found.kl))
    return {"quality": math.exp(float((ours - theirs).mean())), "kl": float(kl.mean()), "tokens": len(ours)}


def rate(session: OrtGenaiSession, texts: Texts, place: int) -> float:
    """Tokens per second of one short answer, without its first token."""
    prompt = texts.set.prompts[place % len(texts.set.prompts)]
    (found,) = session.generate([GenerationRequest(prompt_ids=prompt, max_new_tokens=NEW_TOKENS)])
    return 1e9 * (len(found.timestamps_ns) - 1) / (found.timestamps_ns[-1] - found.timestamps_ns[0])


def speed(session: OrtGenaiSession, other: OrtGenaiSession, texts: Texts) -> dict[str, Any]:
    """Tokens per second, and the ratio to the reference, round by round in alternating order (ABBA)."""
    ours, theirs = [], []
    for place in range(ROUNDS):
        for which in (session, other) if place % 2 == 0 else (other, session):
            (ours if which is session else theirs).append(rate(which, texts, place))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"tok_s": statistics.median(ours), "reference_tok_s": statistics.median(theirs), "ratio": statistics.median(ratios),
            "ratios": [round(value, 4) for value in ratios]}  # fmt: skip


def opened(folder: Path, plan: Plan) -> OrtGenaiSession:
    spare = plan.options.get("spare_threads", 0)
    session = OrtGenaiSession(folder, OrtGenaiOptions(threads=THREADS - int(str(spare))))
    session.warm_up()
    return session


def append(record: dict[str, Any]) -> None:
    RECORDS.parent.mkdir(exist_ok=True)
    with RECORDS.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def record_quality(points: Iterable[Point], texts: Texts, variants: Variants, until: float) -> bool:
    """Records quality and bytes of those that have none; whether all are done."""
    space = TextGeneration.space()
    done = recorded("quality")
    for point in points:
        if weights_of(point) in done:
            continue
        if time.monotonic() > until:
            return False
        started = time.monotonic()
        plan = space.plan(point)
        folder = variants.folder_of(plan)
        session = opened(folder, plan)
        found = {"kind": "quality", "name": weights_of(point), **quality(session, texts), "bytes": weight_bytes(folder)}
        session.close()
        append(found)
        done[found["name"]] = found
        print(f"{found['name']}: {found['quality']:.4f}, {time.monotonic() - started:.1f} s", flush=True)
    return True


def record_speed(points: Iterable[Point], texts: Texts, variants: Variants, until: float) -> bool:
    """Records the speed of those that have none; whether all are done."""
    space = TextGeneration.space()
    done = recorded("speed")
    missing = [point for point in points if name(point) not in done]
    if not missing:
        return True
    kept = space.plan(space.complete(REFERENCE))
    folder = variants.folder_of(kept)
    other = opened(folder, kept)
    for point in missing:
        if time.monotonic() > until:
            return False
        started = time.monotonic()
        plan = space.plan(point)
        session = opened(variants.folder_of(plan), plan)
        append({"kind": "speed", "name": name(point), **speed(session, other, texts), "time": round(time.time())})
        session.close()
        print(f"{name(point)}: {time.monotonic() - started:.1f} s", flush=True)
    return True


def check(texts: Texts, variants: Variants, folder: Path) -> bool:
    """Whether a mixed candidate that was put together says what the technique's own says."""
    space = TextGeneration.space()
    mixed = {"onnx_weight_only.head": 4, "onnx_weight_only.down_proj": 4}
    plan = space.plan(space.complete(REFERENCE | mixed))
    ours = opened(variants.folder_of(plan), plan).score(texts.windows[:1]).log_probs[0]
    target = folder / "check"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    context = TransformContext(original=str(texts.model), calibration=None, seed=0, threads=THREADS, time_limit_s=600)
    catalog.load("techniques", "onnx_weight_only").apply(folder / "onnx_genai-0", target, plan.steps[-1].params, context, print)
    theirs = opened(target, plan).score(texts.windows[:1]).log_probs[0]
    difference = float(np.abs(np.array(ours) - np.array(theirs)).max())
    print(f"largest difference of a log-probability: {difference:.2g}")
    return difference < 1e-4


def sensitivity(texts: Texts, limit_s: float) -> dict[str, Any]:
    """What rounding one part of the model costs, as the stage of a run tells it."""
    request = SensitivityRequest(model=str(texts.model), calibration=texts.set.calibration, tokens=512, threads=THREADS)
    return measure(request.model_dump(mode="json"), limit_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", choices=("quality", "speed", "check", "sensitivity"))
    parser.add_argument("--minutes", type=float, default=4.0)
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    texts = Texts(asked.folder)
    if asked.what == "sensitivity":
        SENSITIVITY.write_text(json.dumps(sensitivity(texts, 60 * asked.minutes), indent=1) + "\n", encoding="utf-8")
        return 0
    variants = Variants(asked.folder / "variants", texts)
    if asked.what == "check":
        return 0 if check(texts, variants, asked.folder / "variants") else 1
    if not any(record["kind"] == "machine" for record in recorded("machine").values()):
        append({"kind": "machine", "name": "", "hardware": machine.hardware(), "libraries": machine.libraries(), "tokens": TOKENS})
    work: Callable[[Iterable[Point], Texts, Variants, float], bool] = record_quality if asked.what == "quality" else record_speed
    return 0 if work([*grid(), *uniform()], texts, variants, until) else 3


if __name__ == "__main__":
    sys.exit(main())
