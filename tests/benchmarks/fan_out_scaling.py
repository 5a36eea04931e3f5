"""How much faster three nodes finish a batch of candidates than one.

    python tests/benchmarks/fan_out_scaling.py [--candidates 18] [--seconds 4]

Everything is real but the work: Ray nodes with two processors and a GPU that is not there, on one machine, and candidates whose
evaluation sleeps, so that the nodes do not compete for this machine's processors. The time is from the start of the first stage to the
end of the last one, from the run's journal. Prints a line per number of nodes and the ratio; exit code 1 where it is below 2.7.

On 2026-11-25, on two virtual processors of an AMD EPYC (`--candidates 12`): 48.2 s on one node, 16.4 s on three, 2.95 times as fast.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from genopt.store.run_folder import RunFolder
from genopt.testing.nodes import several_nodes
from genopt.testing.sleep_task import sleep_plan

GOAL = 2.7
NODES = (1, 3)


def span_s(folder: RunFolder) -> float:
    """Seconds from the start of the first stage of a candidate to the end of the last one."""
    stages = [stage for event in folder.events() if event["event"] == "candidate_finished" for stage in event["stages"]]
    return max(stage["ended"] for stage in stages) - min(stage["started"] for stage in stages)


def batch_s(nodes: int, candidates: int, seconds: float) -> float:
    """Seconds that a batch takes on so many nodes."""
    with tempfile.TemporaryDirectory(prefix="genopt-scaling-") as folder, several_nodes(Path(folder)) as cluster:
        for number in range(nodes):
            cluster.add(f"node-{number}")
        plans = [sleep_plan(f"candidate-{number}", sleep_s=seconds) for number in range(candidates)]
        run, report = cluster.run("run", plans, budget="600s")
        accepted = [candidate for candidate in report.tried if candidate.status == "accepted"]
        if len(accepted) != candidates:
            raise SystemExit(f"Only {len(accepted)} of {candidates} candidates were evaluated.")
        return span_s(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=18)
    parser.add_argument("--seconds", type=float, default=4.0)
    asked = parser.parse_args()
    found = {}
    for nodes in NODES:
        found[nodes] = batch_s(nodes, asked.candidates, asked.seconds)
        print(f"{nodes} node{'s' if nodes > 1 else ''}: {found[nodes]:.1f} s for {asked.candidates} candidates of {asked.seconds:g} s", flush=True)
    ratio = found[NODES[0]] / found[NODES[1]]
    print(f"{ratio:.2f} times as fast (goal {GOAL})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
