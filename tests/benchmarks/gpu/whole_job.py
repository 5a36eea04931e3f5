"""The whole job on a GPU: a model of a real shape with random weights is optimized for speed, its winner served and load-tested.

    python tests/benchmarks/gpu/whole_job.py OUT [--shape llama-8b] [--vllm /opt/vllm/bin/python] [--budget 8m] [--streams 1,8,32,128]
    python tests/benchmarks/gpu/whole_job.py OUT --model FOLDER [...]

With `--vllm`, an interpreter that finds vLLM, its candidates take part. Writes the run folder to OUT/run (report.html, records as
Parquet), the load test of the served winner to OUT/load.json, and the figures of every candidate as Markdown to standard output. Of Gaussian
weights quality means nothing, and nothing is asked of it (`--quality off`); a model that is given must keep 99 %.

On one H200 each (2026-11-30, vLLM 0.22, 16 processors; both jobs at the same time on one host):

8B shape, --include vllm --streams 1,128 --budget 25m: 19 candidates in 23:38, of which 14 were timed. Two that torchao had rounded, W8A16, and
Humming's kernels for W8A8 and in long steps could not be had; the first and the last are proposed no more, and W8A16 opens since. Before the first of
them, 3:37: hashing 16 GB 0:16, the profile 0:29, opening the original 0:13 and the compiled baseline 0:53, timing both 1:11. A candidate took 24 to
33 s to be written where it had to be, 38 to 69 s to open in vLLM (109 with Humming's kernels, which are compiled then), and 15 to 30 s to be timed.
FP8 with prompts read 8,192 tokens at a time won: 8,802 tokens a second with 128 streams, where the original wrote 3,764 and the baseline 3,692; W8A8
with keys and values in FP8 wrote 9,220. The winner answered 52 s after the run's end. All in all, 25:26.

The same later that day on another host, beside other work on its other GPU, --budget 1530s: 14 candidates, all timed, in 24:36; with the load test,
26:09. Each took 21 to 27 s to be written where it had to be, 38 to 60 s to open from the start of its process, about 10 of which pass before its
turn (the first took 91, and four with Humming's kernels 87 to 116, of which 43 to 62 were their first products), and 17 to 31 s to be judged and
timed. Three of those four came from a search that looked for the fastest single stream whatever the objective; it goes for the objective since. FP8
won with 8,676 tokens a second, where the original wrote 3,024 and the baseline 2,853. W8A8 wrote 9,064 and lost the tie, as one that was faster alone
kept it from the front; throughput counts there since, and the same figures choose W8A8.

Served, these winners wrote 2,379 and 2,386 tokens a second for 128 callers at once with prompts of 2,400 tokens, where those of the run had 512:
`genopt bench` took words for what they are in English, and this model's tokenizer takes them apart into bytes. It asks the server since.

With both mended, on a third host, again beside other work on its other GPU, --budget 1530s: 15 candidates, all timed, in 24:39, one of them with
Humming's kernels; with the load test, 26:26. The first began after 3:57. Six were written first, in 25 to 33 s; openings took 46 to 69 s from the
start of their processes (the first 104, with Humming's kernels 114), and judging and timing 16 to 26 s. W8A8 won with 8,870 tokens a second, where
the original wrote 2,991 and the baseline 3,567; with keys and values in FP8 and longer steps it wrote 9,159, within the noise. It answered 57 s after
the run's end, 19 of which vLLM took with what it had compiled in the run, and wrote 7,621 tokens a second for 128 callers with prompts of 511 tokens.

On a fourth host, alone on one H200, --budget 1640s --max-trials 12, number formats imported before a process has its turn: 16 candidates, all timed,
in 23:01, one of them with Humming's kernels; with the load test, 24:47. The first began after 3:25. Six were written first, in 24 to 35 s (the first
two together in 57); openings took 47 to 62 s from the start of their processes (the first 90, with Humming's kernels 96), of which 15 to 20 passed
before their turns, 10 on the hosts before, and judging and timing took 15 to 25 s. W8A8 won with 9,039 tokens a second, where the original wrote
3,827 and the baseline 3,706. It answered 56 s after the run's end and wrote 7,276 tokens a second for 128 callers.

Whatever a search may propose for vLLM: W8A16, W8A8, FP8_DYNAMIC, W4A16 and bf16, with Humming's and Marlin's kernels, an 8-bit cache, steps of 8,192
tokens and guesses (1B shape; tests/gpu/test_vllm.py): 19 combinations, in which each two of these meet, opened and answered there like the original,
12 on one H200 and 7 on another; two of them again (2026-12-01) since vLLM cuts a model's context to what memory holds, W8A8 and W4A16 by Marlin.

SmolLM2 (135M, 99 % of the quality, --streams 1,8,32,128 --budget 11m --prompt-tokens 128 --output-tokens 64): 8 candidates in 10:22. vLLM as it is
won, with 19,659 tokens a second at 128 streams where the original wrote 6,206 and the baseline 5,701, and 0.75 of the baseline's throughput with one
stream; FP8 and W8A8 kept 97.1 and 97.6 %, and were rejected, and groups of 128 do not divide its matrices. Served, it wrote 5,889 tokens a second for
128 callers with prompts of 172 tokens.

Until then, PyTorch's batches copied the logits of all streams to the host in every step: at 128 streams, transformers wrote 1,453 and 3,087 tokens a
second there, as genopt ran it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import results

from genopt.testing.random_models import LLAMA_SHAPES, provide_random_llama

LEFT_OUT = ("prune", "drop", "ort", "llamacpp", "openvino")
"""Candidates for CPUs, and those of which quality is all that matters."""
FIGURES = ("ttft_ms", "tpot_ms", "throughput_tok_s", "load_s")
"""What is kept of a candidate's metrics."""
SERVED_FIGURES = ("ttft_ms", "tpot_ms", "output_tok_s", "prompt_tokens")
"""What is kept of a level of the load test."""
READY_S = 240.0


def genopt(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "genopt", *arguments]


@contextmanager
def deployed(run: Path, port: int) -> Iterator[str]:
    """The URL of a run's winner, served until the block ends."""
    process = subprocess.Popen(genopt("deploy", str(run), "--port", str(port), "--json"), stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = process.stdout.readline()
            assert line, "the deployment ended before it was ready"
            text += line
        yield json.loads(text)["url"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(READY_S)


def save(asked: argparse.Namespace) -> None:
    """Adds the figures of the run and of all that was measured in it to the results."""
    path, subject = asked.out / "run" / "report.json", Path(asked.model).name if asked.model else asked.shape
    if asked.only == "serve" or not path.exists():
        return
    report = json.loads(path.read_text(encoding="utf-8"))
    parameters = {name: vars(asked)[name] for name in ("budget", "streams", "prompt_tokens", "output_tokens")}
    measured = [one for one in report["candidates"] if one["metrics"]]
    tried, timed = (len({one["name"] for one in some} - {"original", "baseline"}) for some in (report["candidates"], measured))
    counts = {"candidates": tried, "of them timed": timed, "run s": report["budget"]["spent_s"]}
    results.save(asked.save, "whole_job", subject, "run", counts, parameters)
    for one in measured:
        figures = {name: metric["value"] for name, metric in one["metrics"].items() if name.startswith(FIGURES)}
        results.save(asked.save, "whole_job", subject, one["name"], figures, parameters)
    if (load := asked.out / "load.json").exists():
        for level in json.loads(load.read_text(encoding="utf-8"))["levels"]:
            figures = {name: level["metrics"][name]["value"] for name in SERVED_FIGURES}
            results.save(asked.save, "whole_job", subject, f"served, {level['concurrency']} at once", figures, parameters)


def table(report: dict[str, Any], streams: list[str]) -> Iterator[str]:
    """A line per candidate."""
    shown = " | ".join(f"tok/s at {count}" for count in streams)
    yield f"| candidate | status | vs original | TTFT ms | TPOT ms | {shown} | load s |"
    yield "| --- | --- | ---: " + "| ---: " * (len(streams) + 3) + "|"
    for one in report["candidates"]:
        metrics, speedup = one["metrics"], one["speedup"].get("vs_original")
        values = [
            metrics.get("ttft_ms"),
            metrics.get("tpot_ms"),
            *(metrics.get(f"throughput_tok_s@{count}") for count in streams),
            metrics.get("load_s"),
        ]
        shown = [f"{value['value']:,.2f}" if value and value["value"] < 100 else f"{value['value']:,.0f}" if value else "–" for value in values]
        shown = [f"{speedup['value']:.2f}x" if speedup else "–", *shown]
        yield f"| {one['name']} | {one['status']} | {' | '.join(shown)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(LLAMA_SHAPES), default="llama-8b")
    parser.add_argument("--model", help="a real one instead, as `genopt optimize` takes it")
    parser.add_argument("--include", default="", help="names of what is tried, with commas between; all by default")
    parser.add_argument("--vllm", type=Path, help="interpreter that finds vLLM")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--max-trials", help="most candidates that the search may add to one per technique and engine")
    parser.add_argument("--streams", default="1,8,32,128")
    parser.add_argument("--prompt-tokens", default="512")
    parser.add_argument("--output-tokens", default="128")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--scratch", type=Path, help="keep model and artifacts there; another call with the same folders goes on")
    parser.add_argument("--only", choices=("optimize", "serve"), help="do half of it")
    results.add_argument(parser)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="genopt-gpu-") as temporary:
        scratch = asked.scratch or Path(temporary)
        os.environ.setdefault("GENOPT_STORE", f"{scratch}/store")
        os.environ.setdefault("GENOPT_ENVS", f"{scratch}/envs")
        code = 0 if asked.only == "serve" else optimize(asked, scratch)
        if code == 0 and asked.only != "optimize":
            code = serve(asked)
    save(asked)
    return code


def optimize(asked: argparse.Namespace, scratch: Path) -> int:
    """Makes the model and the run; prints the table."""
    if asked.vllm is not None:
        subprocess.run(genopt("env", "use", "vllm", str(asked.vllm)), check=True)
    began = time.monotonic()
    model = asked.model or str(provide_random_llama(scratch / asked.shape, asked.shape))
    print(f"The model was there after {time.monotonic() - began:.0f} s.", file=sys.stderr, flush=True)
    chosen = [word for name in LEFT_OUT for word in ("--exclude", name)]
    chosen += [word for name in filter(None, asked.include.split(",")) for word in ("--include", name)]
    chosen += ["--max-trials", asked.max_trials] if asked.max_trials else []
    done = subprocess.run(
        genopt("optimize", model, "--quality", "99%" if asked.model else "off", "--objective", "throughput", "--budget", asked.budget,
               "--concurrency", asked.streams, "--prompt-tokens", asked.prompt_tokens, "--output-tokens", asked.output_tokens,
               "--out", str(asked.out / "run"), *chosen),
        check=False,
    )  # fmt: skip
    if not (asked.out / "run" / "report.json").exists():
        return done.returncode
    report = json.loads((asked.out / "run" / "report.json").read_text(encoding="utf-8"))
    print(f"{report['hardware'].get('gpus')}\n\n{report['decision']}\n")
    print("\n".join(table(report, asked.streams.split(","))), flush=True)
    return done.returncode


def serve(asked: argparse.Namespace) -> int:
    """Serves the winner and loads it."""
    with deployed(asked.out / "run", asked.port) as url:
        load = genopt("bench", url, "--concurrency", asked.streams, "--duration", "15s", "--prompt-tokens", asked.prompt_tokens,
                      "--max-tokens", asked.output_tokens, "--out", str(asked.out / "load.json"))  # fmt: skip
        return subprocess.run(load, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
