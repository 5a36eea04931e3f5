"""Replicas come with the load and go with it, and no request fails.

    python tests/benchmarks/autoscaling.py [--seconds 60]

A fake engine's deployment of one to three replicas gets one worker, then as many as three replicas have places, then one again, for `--seconds`
each; delays are short so that it takes minutes and not an hour. Prints the number of running replicas over time. Exits with 1 unless they rose
above one, fell back to one, and every request was answered.

On 2 virtual cores (2026-11-29): 1 at 0 s, 3 at 33 s, 1 at 95 s; all 1,003 requests answered.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter

import httpx
from served import add_arguments, served, subject

from genopt.serving import deployment
from genopt.serving.manifest import Scaling

SLOTS, MOST = 4, 3
QUICK = {
    "upscale_delay_s": 2,
    "downscale_delay_s": 5,
    "look_back_period_s": 3,
    "target_ongoing_requests": SLOTS,
    "min_replicas": 1,
    "max_replicas": MOST,
}


async def run(url: str, seconds: float, drain_s: float) -> bool:
    ends: Counter[str] = Counter()
    counts: list[tuple[float, int]] = []
    began = time.monotonic()

    def running() -> int:
        return int(deployment.status()["genopt"]["deployments"]["Engine"]["replicas"].get("RUNNING", 0))

    async def work(http: httpx.AsyncClient, until: float) -> None:
        while time.monotonic() < until:
            answer = await http.post("/v1/completions", json={"model": "m", "prompt": "abc", "max_tokens": 32})
            ends[str(answer.status_code)] += 1

    async def watch() -> None:
        while True:
            found = await asyncio.to_thread(running)
            if not counts or counts[-1][1] != found:
                counts.append((time.monotonic() - began, found))
            await asyncio.sleep(0.5)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as http:
        watching = asyncio.create_task(watch())
        for workers, length in ((1, seconds / 3), (MOST * SLOTS, seconds), (1, drain_s)):
            until = time.monotonic() + length
            await asyncio.gather(*(work(http, until) for _ in range(workers)))
        watching.cancel()
    print("replicas: " + ", ".join(f"{count} at {at:.0f} s" for at, count in counts))
    print(f"answers: {dict(ends)}")
    return set(ends) == {"200"} and max(count for _, count in counts) > 1 and counts[-1][1] == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the high load")
    parser.add_argument("--drain", type=float, default=60.0, help="seconds of low load at the end")
    options = parser.parse_args()
    scaling = Scaling(
        target_ongoing_requests=SLOTS, max_ongoing_requests=2 * SLOTS, max_queued_requests=8 * SLOTS, min_replicas=1, max_replicas=MOST
    )  # fmt: skip
    with subject(options) as what, served(what, scaling, deployments={"Engine": {"autoscaling_config": QUICK}}) as endpoint:
        return int(not asyncio.run(run(endpoint.url, options.seconds, options.drain)))


if __name__ == "__main__":
    sys.exit(main())
