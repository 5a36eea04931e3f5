"""How far the interleaved measurement can be trusted: A/A pairs, and a slowdown that was planted.

`python tests/benchmarks/measurement.py [--repetitions 20] [--slowdown 3%] [--precision 1%]`

Builds the 8-bit ONNX Runtime variant of SmolLM2-135M and times it against itself through `genopt.measure`, with a
busy wait in every decode step of one side: none for A/A, a share of the time per token for the planted slowdown.
Prints how often the interval covers 1 (A/A), how often the slowdown is found, and how often nothing wins.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from genopt import catalog
from genopt.engines.base import Generation, GenerationRequest, Memory, OnToken, Scores, TextSession
from genopt.measure.exclusivity import NodeWatch
from genopt.measure.limits import usable_cores
from genopt.measure.statistics import half_width
from genopt.measure.text_speed import TextWorkload, compare, measure_aa
from genopt.models.resolve import resolve
from genopt.plan import Ratio
from genopt.spec import parse_share
from genopt.store.artifacts import open_root
from genopt.techniques.base import TransformContext


class Slowed:
    """A session whose every token takes a little longer; the caller's own callback is not used here."""

    def __init__(self, session: TextSession, delay_ns: int) -> None:
        self._session, self._delay_ns = session, delay_ns

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        def wait(index: int, token: int) -> bool:
            until = time.monotonic_ns() + self._delay_ns
            while time.monotonic_ns() < until:
                pass
            return True

        return self._session.generate(requests, wait)

    def score(self, sequences: Sequence[Sequence[int]]) -> Scores:
        return self._session.score(sequences)

    def memory(self) -> Memory:
        return self._session.memory()

    def close(self) -> None:
        self._session.close()


def build(scratch: Path) -> Path:
    """The 8-bit variant."""
    model = resolve("smollm2-135m", cache=open_root(None) / "models", progress=print)
    context = TransformContext(original=model.path, calibration=None, seed=0, threads=usable_cores(), time_limit_s=600)
    exported, quantized = scratch / "exported", scratch / "quantized"
    for folder in (exported, quantized):
        folder.mkdir()
    catalog.load("techniques", "onnx_genai").apply(Path(model.path), exported, {}, context, print)
    catalog.load("techniques", "onnx_weight_only").apply(exported, quantized, {"bits": 8, "block_size": 32}, context, print)
    return quantized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--slowdown", type=parse_share, default=0.03)
    parser.add_argument("--precision", type=parse_share, default=0.01)
    asked = parser.parse_args()
    workload = TextWorkload(prompts=tuple(tuple(range(100 + 7 * start, 164 + 7 * start)) for start in range(8)), output_tokens=32)
    with tempfile.TemporaryDirectory(prefix="genopt-benchmark-") as scratch:
        session = catalog.load("engines", "ort_genai").open(build(Path(scratch)), {"threads": usable_cores()})
        watch = NodeWatch(lambda: [])
        plain = Slowed(session, 0)
        step_ns = int(1e6 * compare(plain, plain, workload, seed=0, half_width=0.01, max_rounds=8, time_cap_s=10).candidate_metrics["tpot_ms"].value)
        slow = Slowed(session, int(asked.slowdown * step_ns))
        pairs: list[Ratio] = []
        planted: list[Ratio] = []
        seconds: list[float] = []
        settings = {"half_width": asked.precision, "time_cap_s": 30.0, "watch": watch}
        for repetition in range(asked.repetitions):
            pairs.append(measure_aa(plain, workload, seed=repetition, **settings))
            started = time.monotonic()
            planted.append(compare(slow, plain, workload, seed=repetition, max_rounds=64, **settings).ratio)
            seconds.append(time.monotonic() - started)
            print(f"{repetition + 1}: A/A {_said(pairs[-1])}, planted {_said(planted[-1])}, {seconds[-1]:.1f} s", flush=True)
        session.close()
    print(json.dumps({
        "repetitions": asked.repetitions, "tpot_ms": step_ns / 1e6,
        "aa_covers_1": sum(pair.ci_low <= 1 <= pair.ci_high for pair in pairs),
        "aa_wins": sum(pair.ci_low > 1 for pair in pairs),
        "slowdown_found": sum(pair.ci_high < 1 for pair in planted),
        "slowdown_mean": 1 / math.exp(sum(math.log(pair.value) for pair in planted) / len(planted)) - 1,
        "half_width_median": sorted(map(half_width, planted))[len(planted) // 2], "seconds_median": sorted(seconds)[len(seconds) // 2],
    }, indent=2))  # fmt: skip


def _said(ratio: Ratio) -> str:
    return f"{ratio.value:.4f} [{ratio.ci_low:.4f}, {ratio.ci_high:.4f}]"


if __name__ == "__main__":
    main()
