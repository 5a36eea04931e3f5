"""Number formats and engines by how many requests are continued at once: the decode step, the throughput, and reading prompts.

    python tests/benchmarks/gpu/formats.py MODEL [--vllm /opt/vllm/bin/python] [--ways torch,vllm-bf16,...] [--streams 1,8,32,128] [--save FOLDER]

MODEL is a folder; one that is missing is written with random weights of the shape that its name says (llama-1b, llama-8b). Each way runs in a
process of its own, those of vLLM and `library` in the interpreter that --vllm names, as vLLM asks for another PyTorch than genopt does; it finds
genopt in this checkout, and the libraries of genopt's environment `vllm` are enough. A way that fails costs only its own line, and the exit
status, which is 1 then. At each number of streams that many random prompts of --prompt-tokens are begun together and answered with --new tokens,
twice, after a round that warms up. Prints, as medians of both rounds:

tpot         Milliseconds of a decode step: the median time between the tokens of an answer, then over answers, so that steps which read
             prompts of others do not count.
tok/s        New tokens over the time from the first request to the last token, prompts included.
MBU          Share of --peak (TB/s, by default this GPU's where `limits.py` knows it) at which a step reads what it must: weights, and keys and
             values of all streams halfway.
prefill      Prompt tokens a second, where answers end at their first token.
opened       Seconds until the engine was ready, rounding apart.

Then, for each number of streams, the regret of choosing by the first round: how much longer the choice's step takes in the second than that of the
fastest way in the second. Both rounds follow each other in one process, so that it says nothing of another process or day. `library` calls vLLM's
own `LLM.generate` with the same prompts and the settings of vllm-fp8; it tells no times of tokens.

On one H200 (2026-11-28, vLLM 0.22, 8B shape, other work on the other GPU), milliseconds of a step with 1, 8, 32 and 128 streams: bf16 4.89, 5.12,
5.79, 8.75; FP8 3.45, 3.63, 4.80, 7.03; with an 8-bit cache 3.55, 3.69, 4.77, 6.75; W8A8 3.70, 3.91, 4.49, 7.11; W4A16 3.77, 3.94, 4.79, 8.51; the
compiled step of torch 4.93 with one, its eager batches 41 to 89, which copied all logits to the host then. 128 prompts of 512 tokens were read at
42,800 tokens a second in bf16, 65,900 in FP8 (1.54x) and 40,300 in W4A16. The choice had no regret at any number of streams. vLLM's own generate
wrote 280, 1,941, 4,804 and 8,620 tokens a second, ours 279, 1,955, 4,784 and 8,517. Four bits gain 1.30x over bf16 with one stream: reading their
4.7 GB takes 1 ms at 4.8 TB/s, so most of the 3.8 ms is something else.

Through vLLM's asynchronous engine, its model in a process of its own, and with Humming's kernels (one H200, 2026-11-29): bf16 4.95, 5.18,
5.86, 8.72; W4A16 3.05, 3.26, 4.10, 7.87, which is 1.62x with one stream; FP8 3.47 with one and 7.05 with 128. Ours wrote 274 and 8,506 tokens a
second in FP8, vLLM's own generate 270 and 8,632. No regret. Humming read its prompts in steps of 8,192 tokens then, which it gets no more, as larger
products err in its release (`HUMMING_TOKENS`): with 128 such prompts at once it wrote 2,438 tokens a second in `whole_job.py`, prompts included,
where Machete wrote 6,117.

MBU of these steps, with 1, 8, 32 and 128 streams (computed from them afterwards): bf16 63, 63, 62, 59 %; FP8 49, 50, 45, 52 %, with an 8-bit cache
47, 47, 40, 40 %; W8A8 46, 46, 48, 52 %; W4A16 with Humming 32, 34, 36, 38 %; the compiled step of torch 64 %, its eager batches 6 to 8 %.

What else multiplies by four bits, on the same kind of GPU a day later (vLLM's own random weights in this shape, processes that were open at once
and timed in turn, median of two; 1, 8, 32 and 128 streams): bf16 4.71, 4.95, 5.62, 8.53; Humming 3.01, 3.20, 4.05, 7.70 (1.57x; 2.94 and 3.07 with
one stream); Marlin 3.13, 3.30, 4.43, 10.65; with the head at 8 bits 3.03, 3.21, 4.34, 10.83. Of Humming's step with one stream 1.95 ms are its
products (at 1.8 TB/s), 0.38 attention, 0.25 the head in bf16 (at 4.3 TB/s), the rest norms, rotations and writing keys and values. torch: its
compiled step with tinygemm took 4.16 ms against 5.14 in bf16; unpacking four bits in code that Inductor fuses took 6.5 against 6.0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import results
from artifacts import applied, provide_model
from limits import limits

from genopt import catalog
from genopt.engines.base import GenerationRequest, TextSession
from genopt.models.headers import read_header
from genopt.plan import JsonValue

READS: dict[str, JsonValue] = {"max_batched_tokens": 8192}
LIBRARY = "library"
CHECKOUT = Path(__file__).resolve().parents[3]
Rounding = tuple[str, dict[str, JsonValue]]
WAYS: Mapping[str, tuple[str, Rounding | None, dict[str, JsonValue]]] = {
    "torch-eager": ("torch", None, {"compile": False}),
    "torch": ("torch", None, {"compile": True}),
    "torch-int4": ("torch", ("torchao_int4_weight_only", {"method": "minmax"}), {"compile": True}),
    "torch-float8": ("torch", ("torchao_float8_weight_only", {}), {"compile": True}),
    "vllm-bf16": ("vllm", None, READS),
    "vllm-fp8": ("vllm", None, {**READS, "quantization": "fp8"}),
    "vllm-fp8-kv8": ("vllm", None, {**READS, "quantization": "fp8", "cache_type": "fp8"}),
    "vllm-w8a8": ("vllm", ("compressed_tensors", {"scheme": "W8A8"}), READS),
    "vllm-w4a16": ("vllm", ("compressed_tensors", {"scheme": "W4A16"}), READS),
    "vllm-w4a16-humming": ("vllm", ("compressed_tensors", {"scheme": "W4A16"}), {"kernels": "humming"}),
    "vllm-w4a16-marlin": ("vllm", ("compressed_tensors", {"scheme": "W4A16"}), {**READS, "kernels": "marlin"}),
    LIBRARY: ("vllm", None, {**READS, "quantization": "fp8"}),
}
"""By name: the engine, the technique that rounds the weights first with its parameters, and options."""
SHOWN: Mapping[str, int] = {"tpot": 2, "tok/s": 0, "MBU": 2, "prefill": 0, "opened": 0}
"""Figures and their digits."""
Level = dict[str, list[float]]


def weight_bytes(artifact: Path, options: Mapping[str, JsonValue]) -> float:
    """Of the weights that a step reads: all but an embedding table that is not the head too; FP8 halves matrices while it loads them."""
    import torch

    sizes: dict[str, int] = {}
    for path in artifact.glob("*.safetensors"):
        for name, (dtype, elements) in read_header(path).items():
            sizes[name] = elements * vars(torch)[dtype].itemsize
    tied = not any(name.startswith("lm_head.") for name in sizes)
    halved = options.get("quantization") == "fp8"
    return sum(
        size / 2 if halved and name.endswith("_proj.weight") else size for name, size in sizes.items() if tied or "embed_tokens" not in name
    )  # fmt: skip


def requests(count: int, prompt_tokens: int, new: int, seed: int, vocabulary: int = 250) -> list[GenerationRequest]:
    """Prompts of random tokens."""
    draw = random.Random(f"{count} {seed}")
    prompts = [tuple(draw.randrange(5, vocabulary) for _ in range(prompt_tokens)) for _ in range(count)]
    return [GenerationRequest(prompt_ids=prompt, max_new_tokens=new) for prompt in prompts]


def answered(session: TextSession, asked: Sequence[GenerationRequest]) -> tuple[float, float]:
    """The decode step in milliseconds, and new tokens a second."""
    began = time.perf_counter()
    found = session.generate(asked)
    took = time.perf_counter() - began
    steps = [median((later - now) / 1e6 for now, later in zip(one.timestamps_ns, one.timestamps_ns[1:], strict=False)) for one in found
             if len(one.timestamps_ns) > 1]  # fmt: skip
    return median(steps) if steps else 0.0, sum(len(one.token_ids) for one in found) / took


def by_session(artifact: Path, way: str, asked: argparse.Namespace) -> dict[str, Level]:
    """Times of a way by number of streams."""
    engine, _, options = WAYS[way]
    began = time.monotonic()
    session: TextSession = catalog.load("engines", engine).open(artifact, options)
    opened = time.monotonic() - began
    weights, context = weight_bytes(artifact, options), asked.prompt_tokens + asked.new / 2
    levels: dict[str, Level] = {}
    for streams in map(int, asked.streams.split(",")):
        level: Level = {"tpot": [], "tok/s": [], "prefill": [], "opened": [opened]}
        session.generate(requests(streams, asked.prompt_tokens, 4, -1))
        for turn in range(2):
            step, rate = answered(session, requests(streams, asked.prompt_tokens, asked.new, turn))
            level["tpot"].append(step)
            level["tok/s"].append(rate)
            read = weights + streams * context * (session.memory().kv_bytes_per_token or 0.0)
            if asked.peak:
                level.setdefault("MBU", []).append(read / (step / 1e3) / (asked.peak * 1e12))
            level["prefill"].append(asked.prompt_tokens * answered(session, requests(streams, asked.prompt_tokens, 1, 2 + turn))[1])
        levels[str(streams)] = level
    session.close()
    return levels


def by_library(model: Path, asked: argparse.Namespace) -> dict[str, Level]:
    """Times of vLLM called directly."""
    from vllm import LLM, SamplingParams

    llm = LLM(model=str(model), skip_tokenizer_init=True, quantization="fp8", max_num_seqs=128, max_num_batched_tokens=8192,
              enable_prefix_caching=False, gpu_memory_utilization=0.8)  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=asked.new, ignore_eos=True, detokenize=False)
    levels: dict[str, Level] = {}
    for streams in map(int, asked.streams.split(",")):
        level: Level = {"tok/s": []}
        for turn in (-1, 0, 1):
            prompts = [{"prompt_token_ids": list(one.prompt_ids)} for one in requests(streams, asked.prompt_tokens, asked.new, turn)]
            began = time.perf_counter()
            found = llm.generate(prompts, sampling, use_tqdm=False)
            rate = sum(len(one.outputs[0].token_ids) for one in found) / (time.perf_counter() - began)
            level["tok/s"] += [rate] if turn >= 0 else []
        levels[str(streams)] = level
    return levels


def timed(model: Path, way: str, asked: argparse.Namespace) -> dict[str, Level]:
    """Runs in a process of its own."""
    if way == LIBRARY:
        return by_library(model, asked)
    rounding = WAYS[way][1]
    with tempfile.TemporaryDirectory(prefix="genopt-gpu-", dir=asked.scratch) as scratch:
        return by_session(applied(model, *rounding, Path(scratch) / "artifact") if rounding else model, way, asked)


def one(way: str, asked: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    """Times a way in a process, of the interpreter that it needs."""
    interpreter, environment = sys.executable, None
    if asked.vllm is not None and WAYS[way][0] == "vllm":
        interpreter, environment = str(asked.vllm), {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    same = ["--streams", asked.streams, "--prompt-tokens", str(asked.prompt_tokens), "--new", str(asked.new)]
    same += ["--peak", str(asked.peak)] if asked.peak else []
    same += ["--scratch", str(asked.scratch)] if asked.scratch else []
    command = [interpreter, __file__, str(asked.model), *same, "--one", way]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def regret(ways: Mapping[str, Mapping[str, Level]], streams: str) -> tuple[str, float]:
    """What the first round chooses, and how much slower it is in the second than the fastest there."""
    steps = {way: levels[streams]["tpot"] for way, levels in ways.items()}
    chosen = min(steps, key=lambda way: steps[way][0])
    return chosen, steps[chosen][1] / min(times[1] for times in steps.values()) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--vllm", type=Path, help="interpreter that finds vLLM; by default this one")
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--peak", type=float, help="bandwidth of the GPU's memory in TB/s; by default what its name says")
    parser.add_argument("--scratch", type=Path, help="where rounded checkpoints are written")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    results.add_argument(parser)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps({"levels": timed(asked.model, asked.one, asked), "versions": results.versions()}))
        return 0
    if unknown := set(asked.ways.split(",")) - set(WAYS):
        parser.error(f"there is no way {', '.join(sorted(unknown))}; choose of {', '.join(WAYS)}")
    provide_model(asked.model)
    print("| way | streams | TPOT ms | tok/s | MBU | prefill tok/s | opened in s |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    if asked.peak is None:
        asked.peak = known.bandwidth if (known := limits()) else None
    parameters = {"prompt_tokens": asked.prompt_tokens, "new_tokens": asked.new, "bandwidth_tb_s": asked.peak}
    ways: dict[str, dict[str, Level]] = {}
    versions: dict[str, str] = {}
    failed: list[str] = []
    for way in asked.ways.split(","):
        done = one(way, asked)
        if done.returncode:
            failed.append(way)
            print(f"| {way} | failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]} | | | | |", flush=True)
            continue
        told = json.loads(done.stdout.splitlines()[-1])
        ways[way], versions[way] = told["levels"], told["versions"]
        for streams, level in ways[way].items():
            middle = {name: median(values) for name, values in level.items()}
            cells = (f"{middle[name]:,.{digits}f}" if name in middle else "–" for name, digits in SHOWN.items())
            print(f"| {way} | {streams} | {' | '.join(cells)} |", flush=True)
            results.save(asked.save, "formats", f"{asked.model.name}, {streams} streams", way, middle, parameters, versions[way])
    stepping = {way: levels for way, levels in ways.items() if way != LIBRARY}
    for streams in asked.streams.split(",") if stepping else ():
        chosen, lost = regret(stepping, streams)
        print(f"{streams} streams: {chosen} is chosen, regret {lost:.1%}", flush=True)
        subject = f"{asked.model.name}, {streams} streams"
        results.save(asked.save, "formats", subject, f"choice: {chosen}", {"regret": lost}, parameters, versions[chosen])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
