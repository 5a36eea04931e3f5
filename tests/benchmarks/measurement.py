"""How far the interleaved measurement can be trusted: A/A pairs, a slowdown that was planted, and one that was not.

    python tests/benchmarks/measurement.py RESULTS.jsonl --artifact FOLDER [--minutes 8]

FOLDER is an artifact for the `ort_genai` engine, such as that of `ort-int8-g32-sym` in a run's report. Each repetition does what a
run does with a candidate, with the same settings and processes: it times the baseline against itself (A/A), and against it two
candidates in fresh processes of their own, both with the same weights: one that is exactly as fast (planted 0 %), and one whose
every decode step waits 3 % longer. Appends a line per repetition to RESULTS, ends after --minutes and goes on where it ended when
called again; prints what all lines so far come to:

aa_covers_1     A/A intervals that cover 1.000; should be 19 of 20 or more.
slower_found    Planted slowdowns whose whole interval is below 1; should be 19 of 20 or more.
nothing_won     Planted 0 % that wins by `genopt.search.selection.choose`, given that repetition's A/A; should be none.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

    def __init__(self, artifact: Path, scratch: Path) -> None:
        self._artifact, self._scratch = artifact, scratch
        self._open: list[SessionProcess] = []
        self.watch = NodeWatch(lambda: [session.pid for session in self._open])
        info = scratch / "slowed_engine-0.0.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slowed-engine\nVersion: 0.0.0\n")
        (info / "entry_points.txt").write_text("[genopt.engines]\nslowed = slowed_engine:SlowedEngine\n")

    @contextmanager
    def session(self, delay_ns: int = 0) -> Iterator[SessionProcess]:
        threads = usable_cores()
        path = os.pathsep.join([str(self._scratch), str(Path(__file__).parent), str(Path(__file__).parents[2])])
        options = {"threads": threads, "delay_ns": delay_ns}
        session = SessionProcess(
            "slowed", self._artifact, options, log=self._scratch / "session.log", timeout_s=120, threads=threads, environment={"PYTHONPATH": path}
        )  # fmt: skip
        with session:
            self._open.append(session)
            yield session
            self._open.remove(session)


def repetition(machine: Machine, baseline: SessionProcess, delay_ns: int, seed: int, precision: float) -> dict[str, Any]:
    """What one run would find."""
    settings: dict[str, Any] = {"seed": seed, "half_width": precision, "watch": machine.watch}
    aa = measure_aa(baseline, WORKLOAD, time_cap_s=SECONDS_OF_AA, **settings)
    found = {"aa": aa.model_dump()}
    for name, delay in (("nothing", 0), ("slower", delay_ns)):
        started = time.monotonic()
        with machine.session(delay) as candidate:
            duel = compare(candidate, baseline, WORKLOAD, max_rounds=ROUNDS, time_cap_s=SECONDS, **settings)
        found[name] = {
            **duel.ratio.model_dump(), "decided": duel.decided, "contended": duel.contended, "discarded": duel.discarded,
            "rounds": duel.candidate_metrics["tpot_ms"].n, "seconds": time.monotonic() - started,
        }  # fmt: skip
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
        "seconds_of_a_candidate": round(statistics.median(line[name]["seconds"] for line in lines for name in ("nothing", "slower")), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--slowdown", type=parse_share, default=0.03)
    parser.add_argument("--precision", type=parse_share, default=PRECISION)
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    lines = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    with tempfile.TemporaryDirectory(prefix="genopt-benchmark-") as scratch, asked.results.open("a") as results:
        machine = Machine(asked.artifact, Path(scratch))
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
