"""What running a library behind genopt's engine costs: the same library called directly in a script, on the same file, in turns.

    python tests/benchmarks/engine_wrapper.py MODEL_FOLDER [--engine llamacpp openvino] [--threads 2] [--rounds 8]

All are processes in the engine's environment that stay open, take turns in all orders and greedily continue the same prompt on their own: the
engine that answers at the end, the engine that streams every token to this process, and the script. It does what its library's own examples
do: llama.cpp's low-level calls with numpy's argmax, `openvino_genai.LLMPipeline` with token ids, and the loop of
`onnxruntime_genai.Generator`. Prints per engine:

ratio        Tokens per second while decoding through the engine, as a share of the library's own, with its 95 % interval. Goal: 0.97 or more.
streaming    What sending each token to this process adds to it, which then needs a core that the engine's threads want. Goal: 0.3 ms or less.
elsewhere    What starting a stage in the engine's environment takes more than in ours, imports of the engine apart. Goal: 1 s or less.

SmolLM2 on 2 cores of an AMD EPYC server (2026-11-29): ONNX Runtime GenAI int8 0.985 [0.939, 1.015], streaming +0.16 ms; llama.cpp Q8_0 0.984
[0.972, 0.996], +0.19 ms; OpenVINO int8 0.955 [0.929, 0.982], +0.11 ms; starting elsewhere takes no longer (0.17 s). All 64 tokens are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from genopt import catalog
from genopt.engines.base import GenerationRequest
from genopt.environments import place
from genopt.errors import GenoptError
from genopt.measure.statistics import log_ratio_interval
from genopt.plan import JsonValue
from genopt.process import SessionProcess, run_stage

QUIET, STREAMED, OWN = "quiet", "streamed", "own"
PROMPT = tuple(range(100, 118))
TOKENS = 64
STARTS = 3

LLAMACPP = """
import ctypes, json, sys, time
import llama_cpp as c, numpy as np
folder, threads, prompt, tokens = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
model_params = c.llama_model_default_params()
model_params.n_gpu_layers = 0
model_params.use_extra_bufts = "amx_int8" not in open("/proc/cpuinfo").read()  # as the engine: with them the process ends on such processors
model = c.llama_model_load_from_file((folder + "/model.gguf").encode(), model_params)
params = c.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 512, 512, threads, threads
context, vocabulary = c.llama_init_from_model(model, params), c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
def decode(ids):
    array = (c.llama_token * len(ids))(*ids)
    assert c.llama_decode(context, c.llama_batch_get_one(array, len(ids))) == 0
    pointer = ctypes.cast(c.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
    return int(np.ctypeslib.as_array(pointer, (vocabulary,)).argmax())
for _ in sys.stdin:
    c.llama_memory_clear(c.llama_get_memory(context), True)
    found = [decode(prompt)]
    began = time.monotonic()
    while len(found) < tokens:
        found.append(decode(found[-1:]))
    print(json.dumps({"speed": (tokens - 1) / (time.monotonic() - began), "ids": found}), flush=True)
"""

OPENVINO = """
import json, os, sys, tempfile
import numpy as np, openvino, openvino_genai
folder, threads, prompt, tokens = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
with tempfile.TemporaryDirectory() as scratch:  # the library wants the weights under their usual name
    for name in os.listdir(folder):
        os.symlink(os.path.join(os.path.abspath(folder), name), os.path.join(scratch, name.replace(".ovweights", ".bin")))
    pipe = openvino_genai.LLMPipeline(scratch, "CPU", INFERENCE_NUM_THREADS=threads, ATTENTION_BACKEND="SDPA")
    config = openvino_genai.GenerationConfig(max_new_tokens=tokens, do_sample=False, ignore_eos=True)
    for _ in sys.stdin:
        found = pipe.generate(openvino.Tensor(np.array([prompt], np.int64)), config)
        print(json.dumps({"speed": 1000 / found.perf_metrics.get_tpot().mean, "ids": list(found.tokens[0])}), flush=True)
"""

ORT_GENAI = """
import json, sys, time
import onnxruntime_genai as og
folder, threads, prompt, tokens = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
config = og.Config(folder)
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
for _ in sys.stdin:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + tokens, min_length=len(prompt) + tokens)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt)
    generator.generate_next_token()
    began = time.monotonic()
    while not generator.is_done():
        generator.generate_next_token()
    found = list(map(int, generator.get_sequence(0)))[len(prompt):]
    print(json.dumps({"speed": (len(found) - 1) / (time.monotonic() - began), "ids": found}), flush=True)
"""

SUBJECTS: dict[str, tuple[Mapping[str, dict[str, JsonValue]], str]] = {
    "llamacpp": ({"gguf": {"format": "Q8_0"}}, LLAMACPP), "openvino": ({"openvino_export": {"weights": "int8"}}, OPENVINO),
    "ort_genai": ({"onnx_genai": {}, "onnx_weight_only": {"block_size": 64}}, ORT_GENAI),
}  # fmt: skip
"""By engine: the techniques that make its artifact with their parameters, and the script."""


class Direct:
    """The library in a script of its own; it writes its answers to a file descriptor that nothing else uses."""

    def __init__(self, environment: str | None, script: str, artifact: Path, threads: int, log: Path) -> None:
        python, self._log = sys.executable if environment is None else place.interpreter(place.require_built(environment)), log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), "-c", script, str(artifact), str(threads), json.dumps(PROMPT), str(TOKENS)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def run(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"speed"'):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"The script ended: {self._log.read_text(encoding='utf-8', errors='replace')[-500:]}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def through_engine(session: SessionProcess, *, streams: bool) -> dict[str, Any]:
    asked = GenerationRequest(prompt_ids=PROMPT, max_new_tokens=TOKENS)
    (found,) = session.generate([asked], (lambda *_: True) if streams else None)
    seconds = (found.timestamps_ns[-1] - found.timestamps_ns[0]) / 1e9
    return {"speed": (TOKENS - 1) / seconds, "ids": list(found.token_ids)}


def compare(engine: str, model: Path, scratch: Path, threads: int, rounds: int) -> None:
    steps, script = SUBJECTS[engine]
    environment = catalog.load("engines", engine).environment
    artifact, log = model, scratch / f"{engine}.log"
    context = {"original": str(model), "calibration": None, "seed": 0, "threads": threads}
    for technique, params in steps.items():
        source, artifact = artifact, scratch / technique
        artifact.mkdir()
        payload = {"technique": technique, "source": str(source), "destination": str(artifact), "params": params, "context": context}
        began = time.monotonic()
        run_stage("transform", payload, log=log, timeout_s=600, threads=threads, where=catalog.load("techniques", technique).environment)
        print(f"{engine}: {technique} took {time.monotonic() - began:.1f} s", flush=True)
    direct = Direct(environment, script, artifact, threads, scratch / f"{engine}.direct.log")
    with SessionProcess(engine, artifact, {"threads": threads}, log=log, timeout_s=120, threads=threads) as session:
        first, same = through_engine(session, streams=True), direct.run()  # warm-up of both
        sides = {
            QUIET: lambda: through_engine(session, streams=False), STREAMED: lambda: through_engine(session, streams=True), OWN: direct.run,
        }  # fmt: skip
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for order in permutations(sides):
                for side in order:
                    speeds[side].append(sides[side]()["speed"])
    direct.close()
    alike = next((place for place, (one, other) in enumerate(zip(first["ids"], same["ids"], strict=False)) if one != other), TOKENS)
    times = {side: [1000 / speed for speed in found] for side, found in speeds.items()}
    quiet, streamed, own = (statistics.median(times[side]) for side in (QUIET, STREAMED, OWN))
    ratio = log_ratio_interval(times[QUIET], times[OWN], seed=0)
    print(
        f"{engine}: {quiet:.2f} ms a token through the engine, {own:.2f} directly; "
        f"ratio {ratio.value:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]; "
        f"streaming {streamed - quiet:+.2f} ms a token; the first {alike} of {TOKENS} tokens are the same",
        flush=True,
    )


def start_s(where: str | None, scratch: Path) -> float:
    """Seconds of a stage that ends at once: it names a technique that is not there."""
    began = time.monotonic()
    try:
        run_stage("transform", {"technique": "none such"}, log=scratch / "start.log", timeout_s=60, where=where)
    except GenoptError:
        return time.monotonic() - began
    raise SystemExit("a technique that does not exist was applied")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4, help="of all six orders")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for engine in options.engine:
            compare(engine, options.model, Path(folder), options.threads, options.rounds)
            environment = catalog.load("engines", engine).environment
            pairs = [(start_s(None, Path(folder)), start_s(environment, Path(folder))) for _ in range(STARTS)]
            ours, elsewhere = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(f"{engine}: a stage starts in {ours:.2f} s here and in {elsewhere:.2f} s elsewhere", flush=True)


if __name__ == "__main__":
    main()
