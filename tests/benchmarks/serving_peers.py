"""What else one would serve a model with on this machine, beside ours: the same model, precision and load, in the same minutes.

    python tests/benchmarks/serving_peers.py MODEL_FOLDER [--winner ort_genai=ARTIFACT ...] [--vllm PYTHON] [--turns 2]

Servers take turns (first to last, then last to first), each alone on the machine and warmed up, under closed loops of 1, 8 and 16 streams:

genopt              the torch engine, compiled, at the checkpoint's precision, through Ray Serve
genopt, ENGINE      with --winner, for each: an engine and what it opens, such as the winner of a run
transformers serve  with continuous batching
vllm                with --vllm: an interpreter that has vLLM, such as that of `genopt env build vllm-cpu`

Prints tokens per second, and TTFT and TPOT of one stream, as medians of the turns. Needs `pip install "transformers[serving]"`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import httpx
from served import Subject, served

from genopt.measure.load_spec import LoadSpec
from genopt.measure.load_test import load_test
from genopt.serving.manifest import Scaling
from genopt.testing.ports import unused_port

STREAMS = (1, 8, 16)
READY_S = 300.0
TRANSFORMERS = "transformers serve"
Server = Callable[[], AbstractContextManager[str]]


@contextmanager
def ours(what: Subject) -> Iterator[str]:
    """Our application on a Ray of its own."""
    most = max(STREAMS)
    scaling = Scaling(target_ongoing_requests=most, max_ongoing_requests=2 * most, max_queued_requests=4 * most, min_replicas=1, max_replicas=1)
    with served(what, scaling) as endpoint:
        yield endpoint.url


@contextmanager
def process(command: list[str], port: int, environment: Mapping[str, str]) -> Iterator[str]:
    """A server's process, once it lists its models."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True)
        try:
            until = time.monotonic() + READY_S
            while not _answers(url):
                if started.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(f"{' '.join(command)} did not start:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def servers(asked: argparse.Namespace) -> dict[str, Server]:
    """By name, what starts each."""
    model = asked.model.resolve()
    options = {"compile": True}
    found: dict[str, Server] = {
        "genopt": lambda: ours(Subject(engine="torch", artifact=model, model_folder=model, options=options, threads=asked.threads)),
    }
    for given in asked.winner:
        engine, _, artifact = given.partition("=")
        winner = Subject(engine=engine, artifact=Path(artifact).resolve(), model_folder=model, options={}, threads=asked.threads)
        found[f"genopt, {engine}"] = partial(ours, winner)

    def transformers() -> AbstractContextManager[str]:
        port, command = unused_port(), str(Path(sys.executable).parent / "transformers")
        flags = ["--continuous-batching", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
        return process([command, "serve", str(model), *flags], port, {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": tempfile.gettempdir()})

    found[TRANSFORMERS] = transformers
    if asked.vllm:

        def vllm() -> AbstractContextManager[str]:
            port = unused_port()
            flags = [
                "--model",
                str(model),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--max-model-len",
                "2048",
                "--max-num-seqs",
                str(max(STREAMS)),
            ]
            environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
            return process([str(asked.vllm), "-m", "vllm.entrypoints.openai.api_server", *flags], port, environment)

        found["vllm"] = vllm
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--winner", metavar="ENGINE=ARTIFACT", action="append", default=[])
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    known = servers(asked)
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in known}
    for turn in range(asked.turns):
        for name in known if turn % 2 == 0 else reversed(known):
            with known[name]() as url:
                served_as = str(asked.model.resolve()) if name == TRANSFORMERS else None  # it lists what its cache holds, not what it serves
                load = LoadSpec(url=url, model=served_as, concurrency=STREAMS, requests=asked.requests, prompt_tokens=asked.prompt_tokens, seed=turn)
                load_test(load.model_copy(update={"requests": max(STREAMS), "max_tokens": 8, "seed": 99}))
                spec = load.model_copy(update={"max_tokens": asked.max_tokens})
                for streams, level in zip(STREAMS, load_test(spec).levels, strict=True):
                    tokens = sum(one.tokens or 0 for one in level.samples)
                    found[name][f"tok/s at {streams}"].append(tokens / level.wall_s)
                    if streams == 1:
                        found[name]["TTFT ms"] += [one.ttft_ms for one in level.samples if one.ttft_ms is not None]
                        found[name]["TPOT ms"] += [one.tpot_ms for one in level.samples if one.tpot_ms is not None]
                    print(f"{name}, turn {turn}, {streams} streams: {tokens / level.wall_s:.1f} tok/s, {level.succeeded} of {level.sent} answered",
                          file=sys.stderr, flush=True)  # fmt: skip
    columns = [*(f"tok/s at {streams}" for streams in STREAMS), "TTFT ms", "TPOT ms"]
    print(f"| server | {' | '.join(columns)} |\n| --- | {' | '.join('---:' for _ in columns)} |")
    for name, values in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(values[column]):.1f}' if values[column] else '–' for column in columns)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
