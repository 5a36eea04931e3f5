"""Compares the client of `genopt bench` with AIPerf on the same server in the same minutes; run by hand.

    genopt deploy RUN &
    python tests/benchmarks/load_client_agreement.py --url http://127.0.0.1:8000 --model smollm2-135m

AIPerf is installed into a virtual environment of its own: its dependencies are none of ours. The two clients
take turns (AB, BA, ...), so that drift of the server hits both alike; every run gets prompts of its own, of the same
length, so that no cache of prompts favours the second. Both count the server's tokens. The definitions are the same:
AIPerf's inter-token latency of a request is (request latency - TTFT)/(tokens - 1), our TPOT; its request latency
ends with the last response, ours with the last chunk with text.

Prints the median of each client's runs and the ratio; exits with 1 where a ratio is off by more than --tolerance.

**Against a server of fixed speed** the clients agree. Measured on 2026-11-24 on two cores that server and client shared, against the fake
engine of `genopt.testing` (20 ms a token, 32 tokens a request), AIPerf 0.13.0, two runs of each client: with one worker TPOT 20.17 to
20.20 ms (ratio 0.998), TTFT 34.3 to 36.2 ms (0.946), throughput 48.3 to 47.8 tok/s (1.010); with eight TPOT 0.998, TTFT 1.004,
throughput 1.013. Again on 2026-11-25 through genopt's own Serve application (25 ms a token, 12 requests of 32 tokens, two runs each) on two
busy virtual cores, with one worker: TTFT 49.3 to 50.8 ms (0.972), TPOT 26.0 to 26.9 ms (0.965), ITL 25.8 to 26.6 ms (0.970), throughput
37.0 to 35.5 tok/s (1.044).

**Against SmolLM2** in 8 bits, served by genopt's own Serve application on two virtual cores that server and clients shared, the
comparison is not decided. Measured on 2026-11-25, one worker, 32 tokens a request, two runs of each client:

server's threads  requests   TTFT (ms)      ratio   TPOT (ms)    ratio   tok/s          ratio
1                 16         966 to 1369    0.71    32.7 to 44.7 0.73    17.4 to 10.1   1.72
2                 24         844 to 2103    0.40    34.6 to 81.0 0.43    18.5 to 5.7    3.24

The server's own speed drifted more than that: the two runs of genopt's client in the first line came to 23.4 and 42.0 ms TPOT. AIPerf's
processes need processor time besides, which a server on the same two cores lacks, most of all where it uses both. Run it with the
clients on another machine, or with cores to spare.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from genopt.measure.made_prompts import made_prompts

REQUIREMENT = "aiperf==0.13.0"
METRICS = {
    "TTFT p50 (ms)": ("ttft_ms", ("time_to_first_token", "p50")),
    "TPOT p50 (ms)": ("tpot_ms", ("inter_token_latency", "p50")),
    "ITL p50 (ms)": ("itl_ms", ("inter_chunk_latency", "p50")),
    "E2EL p50 (ms)": ("e2el_ms", ("request_latency", "p50")),
    "output tok/s": ("output_tok_s", ("output_token_throughput", "avg")),
    "requests/s": ("requests_s", ("request_throughput", "avg")),
    "tokens a request": ("output_tokens", ("output_sequence_length", "p50")),
}
"""What is compared: the name in our result, then in AIPerf's."""


def installed(environment: Path) -> Path:
    """The `aiperf` of a virtual environment, which is made where it is missing."""
    command = environment / "bin" / "aiperf"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
    return command


def ours(options: argparse.Namespace, prompts: Path) -> dict[str, float]:
    words = [
        sys.executable, "-m", "genopt", "bench", options.url, "--model", options.model, "--concurrency", str(options.concurrency),
        "--requests", str(options.requests), "--max-tokens", str(options.max_tokens), "--prompts", str(prompts), "--json",
    ]  # fmt: skip
    level = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)["levels"][0]
    client = level["client"]
    print(f"  genopt: {level['succeeded']}/{level['sent']} answered, client {client['cpu_share']:.0%} of a core, saturated: {client['saturated']}")
    return {title: level["metrics"][name]["value"] for title, (name, _) in METRICS.items()}


def theirs(options: argparse.Namespace, aiperf: Path, prompts: Path, folder: Path) -> dict[str, float]:
    words = [
        str(aiperf), "profile", "--model", options.model, "--url", options.url, "--endpoint-type", "chat", "--streaming",
        "--concurrency", str(options.concurrency), "--request-count", str(options.requests), "--warmup-request-count", str(options.concurrency),
        "--input-file", str(prompts), "--custom-dataset-type", "single_turn", "--dataset-sampling-strategy", "sequential",
        "--tokenizer", options.tokenizer, "--use-server-token-count", "--use-legacy-max-tokens",
        "--extra-inputs", json.dumps({"temperature": 0, "max_tokens": options.max_tokens}),
        "--output-artifact-dir", str(folder), "--ui", "none", "--no-server-metrics", "--no-gpu-telemetry",
        "--workers-max", "1", "--record-processors", "1",  # its processes take time from a server on the same machine
    ]  # fmt: skip
    log = folder.with_suffix(".log")
    with log.open("w") as stream:
        code = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT).returncode
    found = folder / "profile_export_aiperf.json"
    if code != 0 or not found.exists():
        sys.exit(f"aiperf ended with {code}:\n{log.read_text()[-4000:]}")
    content: dict[str, Any] = json.loads(found.read_text())
    print(f"  aiperf: {content['request_count']['avg']:.0f} answered, errors: {content.get('error_summary') or 'none'}")
    return {title: content[name][statistic] for title, (_, (name, statistic)) in METRICS.items()}


def write_prompts(path: Path, *, count: int, run: int, tokens: int) -> Path:
    """Prompts that no other run has, in the form of both clients."""
    made = made_prompts(tokens, seed=run)
    path.write_text("".join(json.dumps({"prompt": made(index), "text": made(index)}) + "\n" for index in range(count)))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL of the server, without /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each client")
    parser.add_argument("--env", type=Path, help="virtual environment for AIPerf; made where it is missing")
    parser.add_argument("--tokenizer", default="builtin", help="for AIPerf, which loads one even where it counts nothing; a folder needs no network")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--slack-ms", type=float, default=3.0, help="times that differ by no more count as equal: each client works a little")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"genopt": [], "aiperf": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        aiperf = installed(options.env or folder / "env")
        for run in range(2 * options.rounds):
            client = list(found)[(run + run // 2) % 2]
            prompts = write_prompts(folder / f"{run}.jsonl", count=options.requests + options.concurrency, run=run, tokens=options.prompt_tokens)
            measured = ours(options, prompts) if client == "genopt" else theirs(options, aiperf, prompts, folder / f"run{run}")
            found[client].append(measured)
    print(f"{'':18}{'genopt':>12}{'aiperf':>12}{'ratio':>9}")
    worst = 0.0
    for title in METRICS:
        mine, other = (statistics.median(measured[title] for measured in found[client]) for client in found)
        if "(ms)" not in title or abs(mine - other) > options.slack_ms:
            worst = max(worst, abs(mine / other - 1))
        print(f"{title:18}{mine:12.3f}{other:12.3f}{mine / other:9.3f}")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
