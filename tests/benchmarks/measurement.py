"""How far the interleaved measurement can be trusted: A/A pairs, a slowdown that was planted, and one that was not.

    python tests/benchmarks/measurement.py RESULTS.jsonl --artifact FOLDER [--engine torch --options '{"compile": true}'] [--minutes 8]
    python tests/benchmarks/measurement.py --simulated

FOLDER is an artifact for the engine, by default `ort_genai`, such as that of `ort-int8-g32-sym` in a run's report. Each repetition does what a
run does with a candidate, with the same settings and processes: it times the baseline against itself (A/A), and against it a
candidate with the same weights in a fresh process, twice: once exactly as fast (planted 0 %), and once with every decode step waiting
3 % longer. Appends a line per repetition to RESULTS, ends after --minutes and goes on where it ended when
called again; prints what all lines so far come to:

aa_covers_1     A/A intervals that cover 1.000; should be 19 of 20 or more.
slower_found    Planted slowdowns whose whole interval is below 1; should be 19 of 20 or more.
nothing_won     Planted 0 % that wins by `genopt.search.selection.choose`, given that repetition's A/A; should be none.

**By simulation** (`--simulated`, no model; 400 comparisons per level of noise, which varies a request's time per token independently,
14 s as in a run): the interval of two equals covered 1 in 97 to 98 % at every level; a slowdown of 3 % was found in

noise from request to request      0.5 %    1 %    2 %    5 %   15 %
3 % slower is found in            99.8 %   96 %   50 %    9 %    3 %
rounds                                 5      6      8      8      8

So 19 of 20 hold where a request's time per token varies by 1 % or less, and noise that is independent makes up no differences; it only
leaves them undecided.

**On a quiet machine** (one H100, 2026-11-25, the shape of Llama 3.2 1B with random weights, compiled, 1.7 ms a token) 19 repetitions were
made at the default precision of 2 %: A/A covered 1 in 19 of 19, the slowdown was found in 19 of 19 (seen as 3.3 %, median half-width
0.7 %), and what differs in nothing won in none; none was undecided, and a candidate took 31 s, of which compiling was a part. Two processes
with the same weights do differ, by up to 0.9 % here: the interval of what differs in nothing missed 1 in 4 of 19. It tells how well
this process was measured, not how much the next one would differ.

**On a machine that was not quiet** (two virtual processors of an AMD EPYC, SmolLM2 in 8 bits; the same work took from 13 to 111 ms a token
within the hour) A/A covered 1 in 4 of 4, and what differs in nothing won in none of 4. But every comparison ended undecided (median
half-width 25 %), so that the slowdown was found in none of 4, and 2 of the 8 intervals missed the true ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genopt.engines.base import Generation, GenerationRequest, OnToken
from genopt.measure.exclusivity import NodeWatch
from genopt.measure.limits import usable_cores
from genopt.measure.statistics import half_width
from genopt.measure.text_speed import TextWorkload, compare, measure_aa
from genopt.plan import Candidate, Quality, Ratio
from genopt.process import SessionProcess
from genopt.search.selection import choose
from genopt.spec import RunSpec, parse_share
from genopt.tasks.text_bench import ROUNDS, SECONDS, SECONDS_OF_AA

PRECISION = float(RunSpec.model_fields["precision"].default)
WORKLOAD = TextWorkload(prompts=tuple(tuple(range(100 + 7 * start, 164 + 7 * start)) for start in range(8)), output_tokens=32)


class Machine:
    """Opens sessions of one artifact, and knows which processes are ours."""

    def __init__(self, artifact: Path, engine: str, options: dict[str, Any], scratch: Path) -> None:
        self._artifact, self._scratch = artifact, scratch
        self._options = {**options, "engine": engine}
        self._open: list[SessionProcess] = []
        self.watch = NodeWatch(lambda: [session.pid for session in self._open])
        info = scratch / "slowed_engine-0.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slowed-engine\nVersion: 0.0.0\n")
        (info / "entry_points.txt").write_text("[genopt.engines]\nslowed = slowed_engine:SlowedEngine\n")

    @contextmanager
    def session(self) -> Iterator[SlowedSessionProcess]:
        threads = usable_cores()
        delay = self._scratch / f"delay-{len(self._open)}"
        path = os.pathsep.join([str(self._scratch), str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path[1:]])
        session = SlowedSessionProcess(
            "slowed", self._artifact, {**self._options, "threads": threads, "delay": str(delay)}, log=self._scratch / "session.log",
            timeout_s=120, threads=threads, environment={"PYTHONPATH": path},
        )  # fmt: skip
        session.delay = delay
        session.wait(0)
        with session:
            self._open.append(session)
            yield session
            self._open.remove(session)


class SlowedSessionProcess(SessionProcess):
    """A session that can be told to wait."""

    delay: Path

    def wait(self, delay_ns: int) -> None:
        """From the next request on, every token takes so much longer."""
        self.delay.write_text(str(delay_ns))


def repetition(machine: Machine, baseline: SessionProcess, delay_ns: int, seed: int, precision: float) -> dict[str, Any]:
    """What one run would find."""
    settings: dict[str, Any] = {"seed": seed, "half_width": precision, "watch": machine.watch}
    aa = measure_aa(baseline, WORKLOAD, time_cap_s=SECONDS_OF_AA, **settings)
    found = {"aa": aa.model_dump()}
    started = time.monotonic()
    with machine.session() as candidate:
        for name, delay in (("nothing", 0), ("slower", delay_ns)):
            candidate.wait(delay)
            duel = compare(candidate, baseline, WORKLOAD, max_rounds=ROUNDS, time_cap_s=SECONDS, **settings)
            found[name] = {
                **duel.ratio.model_dump(), "decided": duel.decided, "contended": duel.contended, "discarded": duel.discarded,
                "rounds": duel.candidate_metrics["tpot_ms"].n, "seconds": time.monotonic() - started,
            }  # fmt: skip
            started = time.monotonic()
    return {**found, "seed": seed, "precision": precision, "delay_ns": delay_ns, "nothing_won": _wins(found["nothing"], aa)}


def _wins(found: dict[str, Any], aa: Ratio) -> bool:
    """Whether a run would choose a candidate that was measured so, if its quality were perfect."""
    ratio = Ratio(value=found["value"], ci_low=found["ci_low"], ci_high=found["ci_high"])
    unit = Ratio(value=1, ci_low=1, ci_high=1)
    perfect = Quality(metric="", ratio=1, ci_low=1, ci_high=1, n=1, verdict="accept")
    made = [
        Candidate(name=name, status="accepted", reason="", engine="", quality=perfect, speedup={"vs_original": speed, "vs_baseline": speed})
        for name, speed in (("original", unit), ("baseline", unit), ("nothing", ratio))
    ]  # fmt: skip
    return choose(made, objective="latency", bar=0.99, slo={}, aa=aa.model_dump()).winner is not None


class Pretended:
    """Takes no time; its requests take 0.45 s and then as long per token as told, on a clock of their own, which both sides share."""

    def __init__(self, clock: list[int], token_ms: Callable[[], float]) -> None:
        self._clock, self._token_ms = clock, token_ms

    def generate(self, requests: Sequence[GenerationRequest], on_token: OnToken | None = None) -> list[Generation]:
        started, step = self._clock[0], int(1e6 * self._token_ms())
        times = tuple(started + 450_000_000 + step * index for index in range(requests[0].max_new_tokens))
        self._clock[0] = times[-1]
        return [Generation(token_ids=(0,) * len(times), timestamps_ns=times, started_ns=started, finish_reason="length") for _ in requests]


def simulated(noise: float, *, slowdown: float, precision: float, count: int = 400) -> dict[str, float]:
    """How often equals are taken for equals, and a slowdown is found, where the time per token varies by `noise` from request to request."""
    covered = found = rounds = 0
    for seed in range(count):
        for factor in (1.0, 1 + slowdown):
            clock, generator = [10**9], np.random.default_rng(seed)

            def token_ms(factor: float, generator: np.random.Generator = generator) -> float:
                return 13 * factor * math.exp(generator.normal(0, noise))

            duel = compare(
                Pretended(clock, partial(token_ms, factor)), Pretended(clock, partial(token_ms, 1.0)), WORKLOAD, seed=seed,
                half_width=precision, max_rounds=ROUNDS, time_cap_s=SECONDS, clock=lambda clock=clock: clock[0] / 1e9,
            )  # fmt: skip
            covered += factor == 1 and duel.ratio.ci_low <= 1 <= duel.ratio.ci_high
            found += factor > 1 and duel.ratio.ci_high < 1
            rounds += duel.candidate_metrics["tpot_ms"].n
    return {"noise": noise, "equals_cover_1": covered / count, "slower_found": found / count, "rounds": rounds / (2 * count)}


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What all repetitions come to."""
    slower = [Ratio(**{key: line["slower"][key] for key in ("value", "ci_low", "ci_high")}) for line in lines]
    nothing = [line["nothing"] for line in lines]
    return {
        "repetitions": len(lines),
        "aa_covers_1": sum(line["aa"]["ci_low"] <= 1 <= line["aa"]["ci_high"] for line in lines),
        "slower_found": sum(ratio.ci_high < 1 for ratio in slower),
        "nothing_won": sum(line["nothing_won"] for line in lines),
        "nothing_covers_1": sum(one["ci_low"] <= 1 <= one["ci_high"] for one in nothing),
        "nothing_largest_percent": round(100 * max(abs(one["value"] - 1) for one in nothing), 2),
        "slowdown_seen_percent": round(100 * (math.exp(-statistics.fmean(math.log(ratio.value) for ratio in slower)) - 1), 2),
        "half_width_percent": round(100 * statistics.median(map(half_width, slower)), 2),
        "undecided": sum(not line[name]["decided"] for line in lines for name in ("nothing", "slower")),
        "contended": sum(line[name]["contended"] for line in lines for name in ("nothing", "slower")),
        "seconds_of_a_candidate": round(statistics.median(line["nothing"]["seconds"] for line in lines), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?")
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--engine", default="ort_genai")
    parser.add_argument("--options", type=json.loads, default={}, help="the engine's, as a JSON object")
    parser.add_argument("--simulated", action="store_true", help="sessions that only pretend to take time, with noise of known size")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--slowdown", type=parse_share, default=0.03)
    parser.add_argument("--precision", type=parse_share, default=PRECISION)
    asked = parser.parse_args()
    if asked.simulated:
        for noise in (0.005, 0.01, 0.02, 0.05, 0.15):
            print(json.dumps(simulated(noise, slowdown=asked.slowdown, precision=asked.precision)), flush=True)
        return
    if asked.results is None or asked.artifact is None:
        parser.error("give a file of results and --artifact, or --simulated")
    deadline = time.monotonic() + 60 * asked.minutes
    lines = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    with tempfile.TemporaryDirectory(prefix="genopt-benchmark-") as scratch, asked.results.open("a") as results:
        machine = Machine(asked.artifact, asked.engine, asked.options, Path(scratch))
        with machine.session() as baseline, machine.session() as twin:
            calibration = compare(baseline, twin, WORKLOAD, seed=0, half_width=0.01, max_rounds=8, time_cap_s=8, watch=machine.watch)
            tpot_ms = calibration.candidate_metrics["tpot_ms"].value
        with machine.session() as baseline:
            while len(lines) < asked.repetitions and time.monotonic() < deadline:
                lines.append(repetition(machine, baseline, int(asked.slowdown * 1e6 * tpot_ms), len(lines), asked.precision))
                results.write(json.dumps(lines[-1]) + "\n")
                results.flush()
                print(f"{len(lines)}: " + ", ".join(f"{name} {_said(lines[-1][name])}" for name in ("aa", "nothing", "slower")), flush=True)
    print(json.dumps({**summary(lines), "tpot_ms": round(tpot_ms, 2)}, indent=2))


def _said(ratio: dict[str, Any]) -> str:
    return f"{ratio['value']:.4f} [{ratio['ci_low']:.4f}, {ratio['ci_high']:.4f}]"


if __name__ == "__main__":
    main()
