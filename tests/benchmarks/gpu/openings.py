"""How long opening a model in vLLM takes at first and again, and what vLLM's own settings make of it.

    python tests/benchmarks/gpu/openings.py MODEL [--scheme W8A8] [--vllm /opt/vllm/bin/python] [--ways plain,...] [--save FOLDER]

MODEL is a folder; one that is missing is written with random weights of the shape that its name says (llama-1b, llama-8b). With --scheme, it is
rounded first. Each way opens it twice, with caches of its own: as a candidate of a run does, which has to compile, and as a replica of the winner
does, which finds what was compiled. Both times in a process that was made ready before, as in runs, so that the time is what is spent on the
GPU. `step` is the median time between the tokens of an answer of one stream after the second opening, which no way should change.

Ways: `plain` is what genopt does; `no-aot` has vLLM keep no compiled function of the whole model, `no-bundle` keep the parts of it in files of their
own, and `no-graph-estimate` count no memory of CUDA graphs before it takes memory for keys and values.

On one H200 (2026-11-30, vLLM 0.22, 8B shape in bf16, 16 processors, other work on another GPU of the host): `plain` 62.4 s, again 18.2 s, a step of
4.79 ms. The other ways did not fit into the time there was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

import results
from artifacts import LIMIT_S, applied, provide_model

from genopt.engines.base import GenerationRequest
from genopt.process import SessionProcess
from genopt.session_worker import SessionWorker

WAYS: Mapping[str, Mapping[str, str]] = {
    "plain": {}, "no-aot": {"VLLM_USE_AOT_COMPILE": "0"}, "no-bundle": {"VLLM_USE_MEGA_AOT_ARTIFACT": "0"},
    "no-graph-estimate": {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"},
}  # fmt: skip
"""By name: environment variables that vLLM reads."""
REQUEST = GenerationRequest(prompt_ids=tuple(range(5, 133)), max_new_tokens=128)


def opened(model: Path, engine: str, variables: Mapping[str, str], log: Path) -> tuple[float, float]:
    """Seconds of an opening, and milliseconds of a step."""
    session = SessionProcess(engine, model, {}, log=log, timeout_s=LIMIT_S, environment=variables)
    worker = SessionWorker(session.setting, log).start()
    worker.prepare()
    worker.await_prepared(LIMIT_S)
    with session.open(worker):
        stamps = session.generate([REQUEST])[0].timestamps_ns
        return session.load_s - worker.preparation_s, median((after - before) / 1e6 for before, after in pairwise(stamps))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scheme", help="round it first: W4A16, W8A16, W8A8 or FP8_DYNAMIC")
    parser.add_argument("--engine", default="vllm", choices=("vllm", "vllm_cpu"))
    parser.add_argument("--vllm", type=Path, help="interpreter that finds vLLM; by default genopt's environment")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--scratch", type=Path, help="where caches and a rounded checkpoint are written")
    results.add_argument(parser)
    asked = parser.parse_args()
    if unknown := set(asked.ways.split(",")) - set(WAYS):
        parser.error(f"there is no way {', '.join(sorted(unknown))}; choose of {', '.join(WAYS)}")
    provide_model(asked.model)
    with tempfile.TemporaryDirectory(prefix="genopt-gpu-", dir=asked.scratch) as scratch:
        if asked.vllm is not None:
            os.environ.setdefault("GENOPT_ENVS", f"{scratch}/envs")
            subprocess.run([sys.executable, "-m", "genopt", "env", "use", "vllm", str(asked.vllm)], check=True)
        compare(asked, Path(scratch))
    return 0


def compare(asked: argparse.Namespace, scratch: Path) -> None:
    """A line per way."""
    model = applied(asked.model, "compressed_tensors", {"scheme": asked.scheme}, scratch / "rounded") if asked.scheme else asked.model
    subject = "-".join(filter(None, (asked.model.name, asked.scheme)))
    print("| way | first opening s | again s | step ms |\n| --- | ---: | ---: | ---: |", flush=True)
    for way in asked.ways.split(","):
        caches = {name: str(scratch / way / name) for name in ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        found = [opened(model, asked.engine, {**WAYS[way], **caches}, scratch / way / f"{turn}.log") for turn in range(2)]
        figures = {"first opening s": found[0][0], "again s": found[1][0], "step ms": found[1][1]}
        print(f"| {way} | {found[0][0]:.1f} | {found[1][0]:.1f} | {found[1][1]:.2f} |", flush=True)
        results.save(asked.save, "openings", subject, way, figures, {"engine": asked.engine})


if __name__ == "__main__":
    raise SystemExit(main())
