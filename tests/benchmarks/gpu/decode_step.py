"""The torch engine's decode step of single streams, eager as users run it and compiled, beside what the memory allows.

    python tests/benchmarks/gpu/decode_step.py [--shapes llama-1b,llama-8b] [--ways eager,compiled,...] [--bandwidth 4.8]

Models have real shapes and random weights. Ways are eager bf16, the compiled step, and the compiled step on weights that torchao rounded, with
the head where the model has one of its own; those after `eager` are told against it. Each runs in a process of its own, takes prompts of 512
tokens, and gives the median of --repeats answers of 128 tokens. The share is that of --bandwidth (TB/s, by default this GPU's where
`limits.py` knows it), of which every step must read all weights but the table of embeddings.

On an H100 (2026-11-28, torch 2.11, 8B shape) the step took 7.58 ms (59 % of the bandwidth) with Inductor's defaults, 6.47 ms (69 %) with
tuning by coordinate descent, and 6.30 ms (71 %) with plain attention besides, which is how the engine compiles it since (then set
from outside, by Inductor's environment variable); eager it took 33.2 ms, on another H100.
On one H200 each (2026-11-28, --bandwidth 4.8, as the engine compiles it now), side by side with eager transformers: 8B shape 5.17 ms,
61 %, 5.30x, opened in 141 s; 1B shape 1.23 ms against 16.55 ms, 42 %, 13.4x, opened in 96 s.
On one H200 (2026-11-30, beside other work on another GPU of the host; rows in results/): 8B shape eager 19.5 ms, which is bound by the processor and
took 28.7 ms on another host; compiled 4.72 ms, 66 %, 4.12x, opened in 46 s, as layers that are alike are compiled once; float8 weights (torchao 0.17)
4.02 ms, 1.17x the compiled step, opened in 105 s; int4 (tinygemm, HQQ) 3.72 ms, 1.27x, 61 s. 1B shape 1.16 ms, 44 %, 10.4x, 45 s. On another H200
the same day: 1B shape eager 9.87 ms, compiled 1.36 ms, 7.24x, int8 weights 1.26 ms, 1.08x the compiled step, opened in 120 s, while torchao's recipe
for them still had Inductor tune in all directions, which a session that opens what another process wrote did not. Until then each step took apart
torchao's weights in Python: int4 8.38 ms, int8 weights 9.06 ms, float8 with activations 9.61 ms (8B shape, 2026-11-28). Prompts are read eagerly,
which takes four times as long in float8 weights and 13 times in int4. vLLM's kernels on checkpoints of 4 and 8 bits took 2.9 to 3.7 ms
(`whole_job.py`). On a third H200 that day, likewise: 8B shape eager 20.4 ms, compiled 5.30 ms, 59 %, 3.85x, opened in 63 s; int8 weights 4.51 ms,
1.18x the compiled step, opened in 89 s. On a fourth (2026-12-01): 8B shape eager 22.2 ms, compiled 5.21 ms, 60 %, 4.26x, opened in 66 s; float8
weights 4.38 ms, 1.19x the compiled step, opened in 135 s, int8 weights 4.84 ms, 1.08x, opened in 101 s.
The products of gate and up reach 92 % of the bandwidth, the head 95 %, down 77 %; smaller products, attention over
the whole cache and copies of keys and values take the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import results
from artifacts import applied
from limits import limits
from torch import Tensor

from genopt.engines.base import GenerationRequest, TextSession
from genopt.plan import JsonValue
from genopt.testing.random_models import LLAMA_SHAPES, provide_random_llama

WAYS: Mapping[str, str] = {
    "eager": "", "compiled": "", "int8": "torchao_int8_weight_only", "float8": "torchao_float8_weight_only",
    "float8-dynamic": "torchao_float8_dynamic", "int4": "torchao_int4_weight_only",
}  # fmt: skip
"""By name: the technique that makes what is opened; none where it is the model itself."""
PROMPT, NEW = 512, 128


def token_times(session: TextSession, request: GenerationRequest) -> list[float]:
    """When each token of an answer came."""
    stamps: list[float] = []
    session.generate([request], lambda index, token, known: stamps.append(time.perf_counter()) is None)
    return stamps


def timed(model: Path, way: str, repeats: int) -> dict[str, float]:
    """Opens the model one way and times answers."""
    from genopt.engines.torch_engine import TorchEngine

    began = time.monotonic()
    session = TorchEngine.open(model, {"compile": way != "eager"})
    opened = time.monotonic() - began
    request = GenerationRequest(prompt_ids=tuple(range(5, 5 + PROMPT)), max_new_tokens=NEW)
    paces: list[float] = []
    first: list[float] = []
    for _ in range(repeats + 1):
        began, stamps = time.perf_counter(), token_times(session, request)
        first.append(stamps[0] - began)
        paces.append((stamps[-1] - stamps[0]) / (len(stamps) - 1))
    read = sum(_stored(value) for name, value in session.model.named_parameters() if "embed_tokens" not in name)
    if session.model.config.tie_word_embeddings:
        read += _stored(session.model.get_output_embeddings().weight)
    return {"open_s": opened, "ttft_ms": 1e3 * median(first[1:]), "tpot_ms": 1e3 * median(paces[1:]), "read_gb": read / 1e9}


def _stored(weight: Tensor) -> int:
    """Bytes of a weight as it lies in memory; rounded ones have several parts."""
    from torchao.utils import TorchAOBaseTensor

    if not isinstance(weight, TorchAOBaseTensor):
        return weight.numel() * weight.element_size()
    parts = [getattr(weight, name) for name in weight.tensor_data_names]
    return sum(part.numel() * part.element_size() for part in parts)


def rounded(model: Path, way: str, target: Path) -> Path:
    """The folder that a way opens."""
    if not WAYS[way]:
        return model
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    params: dict[str, JsonValue] = {"head": not config.get("tie_word_embeddings", False)}
    return applied(model, WAYS[way], params, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="llama-1b,llama-8b", help=f"of {', '.join(LLAMA_SHAPES)}")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--bandwidth", type=float, help="of the memory, in TB/s; by default what this GPU's name says")
    parser.add_argument("--repeats", type=int, default=5)
    results.add_argument(parser)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        with tempfile.TemporaryDirectory(prefix="genopt-gpu-") as scratch:
            artifact = rounded(Path(asked.one[0]), asked.one[1], Path(scratch) / "artifact")
            print(json.dumps(timed(artifact, asked.one[1], asked.repeats)))
        return 0
    print(
        "| shape | way | opened in s | TTFT ms | TPOT ms | GB read | share of bandwidth | against eager |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    for shape in asked.shapes.split(","):
        with tempfile.TemporaryDirectory(prefix="genopt-gpu-") as scratch:
            compare(provide_random_llama(Path(scratch) / shape, shape), shape, asked)
    return 0


def compare(model: Path, shape: str, asked: argparse.Namespace) -> None:
    """A line per way; one that fails costs only its own, and `eager` what is told against it, too."""
    eager: float | None = None
    if asked.bandwidth is None:
        asked.bandwidth = known.bandwidth if (known := limits()) else None
    parameters = {"prompt_tokens": PROMPT, "new_tokens": NEW, "repeats": asked.repeats, "bandwidth_tb_s": asked.bandwidth}
    for way in asked.ways.split(","):
        command = [sys.executable, __file__, "--repeats", str(asked.repeats), "--one", str(model), way]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {shape} | {way} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]} | | | | | |", flush=True)
            continue
        one = json.loads(done.stdout.splitlines()[-1])
        if way == "eager":
            eager = one["tpot_ms"]
        share = one["read_gb"] / one["tpot_ms"] / asked.bandwidth if asked.bandwidth else None
        cells = (f"{one['open_s']:.1f}", f"{one['ttft_ms']:.1f}", f"{one['tpot_ms']:.2f}", f"{one['read_gb']:.2f}",
                 "–" if share is None else f"{share:.0%}", "–" if eager is None else f"{eager / one['tpot_ms']:.2f}x")  # fmt: skip
        print(f"| {shape} | {way} | {' | '.join(cells)} |", flush=True)
        figures = {"opened s": one["open_s"], "TTFT ms": one["ttft_ms"], "TPOT ms": one["tpot_ms"]}
        if share is not None:
            figures["share of bandwidth"] = share
        results.save(asked.save, "decode_step", shape, way, figures, parameters)


if __name__ == "__main__":
    raise SystemExit(main())
