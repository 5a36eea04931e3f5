"""How much faster a fixed set of candidates is measured on two GPUs of one machine than on one of them.

    python tests/benchmarks/gpu/fan_out.py OUT [--shape llama-1b] [--vllm /opt/vllm/bin/python] [--gpus 1,2] [--include vllm,torchao,...]

The same candidates of a model with random weights (see whole_job.py), none searched, nothing taken over, with a store and caches of its own
each time. OUT holds a run folder per number of GPUs; another call with the other number goes on from there. Prints, for each, the time from
the run's start to its end, that from the start of the first candidate's first stage to the end of the last one's last, and how many
candidates were measured at once at most, which must not be more than there are GPUs; then the ratios.

On two H200 of one host (2026-11-30, rows in results/; llama-1b, vLLM 0.22, --include vllm,torchao-int --gpus 2,1; on one GPU with all 32 processors
of the machine, on two with 16 each): on one 6 candidates in 324 s, the run in 420 s; on two in 174 s and 283 s, two measured at once. 1.86 times as
fast, the whole run 1.48 times: each GPU opens and times the references (71 and 75 s), after a profile of 14 and 19 s. The last candidates on each
ended 2 s apart. A candidate took 10 to 14 s to be written where it had to be, and 29 to 68 s to be measured, most of which is its opening. That is a
part of the first candidates: float8, pruned and distilled ones were left out. Four torchao candidates alone, which divided unevenly, had 1.65 times.
All twelve (on two other H200 of one host, --include as by default, the two distilled ones included): on two in 655 s, the run in 793 s, two measured
at once at most. Both were at work for 99 % of that: stages took 1,296 s, of which 598 built. On one of them (beside other work on the other, 16
processors each) the time on the machine ended after 716 s with the first eight of the thirteen that began, one of them refused while it was built:
their stages took 719 s there and 732 s on two, so that all would have taken 1.95 times as long as on two if the others, 564 s on two, had gone alike,
and at least 1.8 times unless they had taken 18 % less. 149 s of the 598 went to magnitude pruning, most of it to sorting weights on one processor,
which are selected since.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import results

from genopt.store.run_folder import RunFolder
from genopt.testing.random_models import LLAMA_SHAPES, provide_random_llama

CONCURRENCY = "1,8"


def optimize(asked: argparse.Namespace, model: Path, gpus: int) -> None:
    """One run on so many GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    scratch = asked.out / f"scratch-{gpus}"
    environment = {
        **os.environ, "CUDA_VISIBLE_DEVICES": ",".join(visible[:gpus]), "GENOPT_STORE": str(scratch / "store"), "GENOPT_ENVS": str(scratch / "envs"),
        "VLLM_CACHE_ROOT": str(scratch / "vllm"), "TRITON_CACHE_DIR": str(scratch / "triton"),
    }  # fmt: skip
    genopt = [sys.executable, "-m", "genopt"]
    if asked.vllm is not None:
        subprocess.run([*genopt, "env", "use", "vllm", str(asked.vllm)], env=environment, check=True)
    included = [word for name in asked.include.split(",") for word in ("--include", name)]
    subprocess.run(
        [*genopt, "optimize", str(model), "--quality", "off", "--budget", asked.budget, "--max-trials", "0", "--reuse", "nothing",
         "--concurrency", CONCURRENCY, "--out", str(asked.out / f"gpus-{gpus}"), *included],
        env=environment, check=False,
    )  # fmt: skip


def figures(folder: Path) -> dict[str, float]:
    """What a run took."""
    finished = [event for event in RunFolder(folder).events() if event["event"] == "candidate_finished"]
    stages = [stage for event in finished for stage in event["stages"]]
    measured = sorted(
        (moment, change) for stage in stages if stage["stage"] == "measure" for moment, change in ((stage["started"], 1), (stage["ended"], -1))
    )
    at_once = most = 0
    for _, change in measured:
        at_once += change
        most = max(most, at_once)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {
        "candidates": sum("tpot_ms" in event["candidate"]["metrics"] for event in finished), "run_s": report["budget"]["spent_s"],
        "span_s": max(stage["ended"] for stage in stages) - min(stage["started"] for stage in stages), "at_once": most,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(LLAMA_SHAPES), default="llama-1b")
    parser.add_argument("--vllm", type=Path, help="interpreter that finds vLLM")
    parser.add_argument("--gpus", default="1,2")
    parser.add_argument("--include", default="vllm,torchao,prune,drop")
    parser.add_argument("--budget", default="20m")
    results.add_argument(parser)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    model = provide_random_llama(asked.out / asked.shape, asked.shape)
    counts = [int(count) for count in asked.gpus.split(",")]
    for count in counts:
        optimize(asked, model, count)
    found = {count: figures(folder) for count in (1, 2) if (folder := asked.out / f"gpus-{count}").is_dir()}
    for count, one in found.items():
        print(
            f"{count} GPU{'s' if count > 1 else ''}: {one['candidates']:.0f} candidates in {one['span_s']:.0f} s, the run in {one['run_s']:.0f} s, "
            f"{one['at_once']:.0f} measured at once at most",
            flush=True,
        )
        case = f"{count} GPU{'s' if count > 1 else ''}, {asked.include}"
        kept = {"candidates": one["candidates"], "span s": one["span_s"], "run s": one["run_s"]}
        results.save(asked.save, "fan_out", asked.shape, case, kept, {"budget": asked.budget, "concurrency": CONCURRENCY})
    if len(found) == 2:
        print(f"{found[1]['span_s'] / found[2]['span_s']:.2f} times as fast, the whole run {found[1]['run_s'] / found[2]['run_s']:.2f} times")
    return 0 if all(one["at_once"] <= count for count, one in found.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
