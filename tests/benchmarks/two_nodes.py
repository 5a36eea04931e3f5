"""Two machines that share nothing but an S3 bucket come to the same winner as one, and each measures one thing at a time.

    python tests/benchmarks/two_nodes.py MODEL_FOLDER [--budget 8m] [--include ort-int8-g32-sym,ort-fp32,...]

Ray nodes on this machine stand for machines: each has one processor, a folder of its own as its store, and the bucket of a real S3 server
on loopback in between. First one node, then two, optimize the model with the same candidates and seed. Prints for each the winner, how many
candidates each node measured, and the wall time; exit code 1 where the winners differ, a node measured nothing, or two measurements of a
node overlapped.

On 2 virtual cores (2026-11-28, SmolLM2, --budget 15m, other work on the machine): ort-int8-g32-sym won both times; one node measured 4 candidates
in 657 s, two nodes one each in 699 s, where the budget ended before the other two: both share the machine's memory, and each opens and times
the references itself. No two measurements of a node overlapped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from genopt.distributed.cluster import HOST_LABEL, QUIET
from genopt.distributed.run import start_run
from genopt.progress import Silent
from genopt.report.assemble import assemble
from genopt.spec import build
from genopt.testing.object_store import object_store

CANDIDATES = "ort-int8-g32-sym,ort-int4-g128,ort-fp32,torchao-int8-weight-only"
MEMORY = 200 * 2**20


class Told(Silent):
    """Says what is done, on standard error."""

    def activity(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def machines(folder: Path, count: int) -> Iterator[str]:
    """The address of a cluster of so many nodes with a processor each, besides a head that runs nothing."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY})
    try:
        for number in range(count):
            store = {"GENOPT_STORE": str(folder / f"node-{number}")}
            cluster.add_node(num_cpus=1, labels={HOST_LABEL: f"node-{number}"}, env_vars=store, object_store_memory=MEMORY)
        yield str(cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()


def optimized(model: Path, count: int, bucket: str, budget: str, include: Sequence[str]) -> dict[str, Any]:
    """What a run on so many nodes came to."""
    with tempfile.TemporaryDirectory(prefix="genopt-nodes-") as temporary, machines(Path(temporary), count) as address:
        os.environ["GENOPT_STORE"] = f"{temporary}/driver"
        began = time.monotonic()
        spec = {"model": str(model), "budget": budget, "include": list(include), "max_trials": 0, "address": address, "store": bucket,
                "out": f"{temporary}/run", "reuse": "nothing"}  # fmt: skip
        run = start_run(build(spec), Told())
        wall = time.monotonic() - began
        report = assemble(run)
        spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for event in run.events():
            for stage in event["stages"] if event["event"] == "candidate_finished" else ():
                if stage["stage"] == "measure":
                    spans[stage["node"]].append((stage["started"], stage["ended"]))
    shared = sum(max(0.0, one[1] - other[0]) for found in spans.values() for one, other in zip(sorted(found), sorted(found)[1:], strict=False))
    return {
        "nodes": count, "winner": report.winner, "statuses": {one.name: one.status for one in report.candidates}, "wall_s": round(wall),
        "measured": sorted(map(len, spans.values())), "overlap_s": round(shared, 3),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--include", default=CANDIDATES)
    asked = parser.parse_args()
    os.environ.update(QUIET | {"RAY_AUTH_MODE": "disabled"})
    os.environ.pop("RAY_ADDRESS", None)
    found = []
    for count in (1, 2):
        with object_store() as bucket:
            found.append(optimized(asked.model, count, bucket, asked.budget, asked.include.split(",")))
        print(json.dumps(found[-1]), flush=True)
    one, two = found
    return 0 if one["winner"] == two["winner"] and len(two["measured"]) == 2 and not two["overlap_s"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
