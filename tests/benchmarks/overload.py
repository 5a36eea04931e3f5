"""Four times as many requests as a deployment can take: all are answered or turned away, and what is accepted goes as fast as ever.

    python tests/benchmarks/overload.py [--requests 1000] [--delay-ms 20]

With the fake engine (or --engine, see serving_overhead.py). First a closed loop with as many workers as there are places finds the peak. Then
requests arrive at random at four times that rate, whether or not others were answered, and whoever is turned away does not come back.
Exits with 1 unless

- every request ended in 200 with its whole answer, or in 429 or 503 with Retry-After,
- the accepted ones came to 90 % of the peak's tokens per second or more, while requests arrived,
- all processes of the deployment together hold no more memory at the end than after half of the requests, but for 5 %.

On 2 virtual cores (2026-11-29, fake engine): 328 answered, 672 turned away; the accepted ones came to 103 % of the peak, memory +0.2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter

import httpx
from served import add_arguments, served, subject

from genopt.measure.arrivals import arrivals
from genopt.measure.process_tree import TreeMemory
from genopt.serving.manifest import autoscaling

SLOTS = 8


class Load:
    """Sends requests and notes how each ended."""

    def __init__(self, url: str, tokens: int) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))
        self._tokens = tokens
        self.ended: list[tuple[float, str, int]] = []

    async def ask(self, index: int) -> None:
        body = {"model": "m", "prompt": f"Request {index}", "max_tokens": self._tokens, "temperature": 0}
        try:
            answer = await self._http.post("/v1/completions", json=body)
        except httpx.HTTPError as error:
            self.ended.append((time.monotonic(), type(error).__name__, 0))
            return
        kind, tokens = str(answer.status_code), 0
        if answer.status_code == 200:
            tokens = answer.json()["usage"]["completion_tokens"]
            kind = "200" if tokens == self._tokens else "200, not whole"
        elif "retry-after" not in answer.headers or "error" not in answer.json():
            kind += " without Retry-After or error"
        self.ended.append((time.monotonic(), kind, tokens))

    async def closed_loop(self, workers: int, seconds: float) -> float:
        """Tokens per second."""
        began, self.ended = time.monotonic(), []

        async def work(worker: int) -> None:
            while time.monotonic() - began < seconds:
                await self.ask(worker)

        await asyncio.gather(*(work(worker) for worker in range(workers)))
        return sum(tokens for _, _, tokens in self.ended) / (time.monotonic() - began)

    async def open_loop(self, rate: float, requests: int, memory: TreeMemory) -> tuple[float, list[int]]:
        """Tokens per second while requests arrive; memory when half of them and when all have been sent."""
        began, self.ended = time.monotonic(), []
        held: list[int] = []
        async with asyncio.TaskGroup() as group:
            for index, at in zip(range(requests), arrivals("poisson", rate, seed=0), strict=False):
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                group.create_task(self.ask(index))
                if index in (requests // 2, requests - 1):
                    held.append(memory.look().bytes)
            last = time.monotonic()
        return sum(tokens for at, _, tokens in self.ended if at <= last) / (last - began), held


async def run(url: str, options: argparse.Namespace) -> bool:
    load = Load(url, options.max_tokens)
    await load.closed_loop(SLOTS, 2)
    peak = await load.closed_loop(SLOTS, options.seconds)
    rate = options.times * peak / options.max_tokens
    speed, held = await load.open_loop(rate, options.requests, TreeMemory(os.getpid()))
    kinds = Counter(kind for _, kind, _ in load.ended)
    growth = held[1] / held[0] - 1
    print(f"peak {peak:.0f} tok/s; {options.requests} requests at {rate:.1f}/s: {dict(kinds)}")
    print(f"accepted {speed:.0f} tok/s, {speed / peak:.1%} of the peak; memory {held[1] / 2**20:.0f} MiB, {growth:+.1%} since half of the requests")
    return set(kinds) <= {"200", "429", "503"} and sum(kinds.values()) == options.requests and speed >= 0.9 * peak and growth <= 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--times", type=float, default=4.0, help="arrivals as a multiple of the capacity")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the peak is measured")
    options = parser.parse_args()
    scaling = autoscaling({SLOTS // 2: 0.5, SLOTS: 1.0})
    with subject(options) as what, served(what, scaling) as endpoint:
        return int(not asyncio.run(run(endpoint.url, options)))


if __name__ == "__main__":
    sys.exit(main())
