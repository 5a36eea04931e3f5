"""What Serve takes to the first byte of a stream by itself: the least that anything served with it adds.

    python tests/benchmarks/serving_floor.py [--delay-ms 20]
    RAY_SERVE_ENABLE_HA_PROXY=1 python tests/benchmarks/serving_floor.py

A route waits for `--delay-ms` and then streams one line; the same, where another deployment waits and streams, as genopt's API and its engines
do. One caller at a time, and eight who begin at once. Prints the median time to the first byte without the wait.

On 2 cores of an AMD EPYC (2026-11-29, five turns): 7.8 to 9.1 ms (1) and 19 to 31 ms (8), and with another deployment 10.4 to 13.7 and 28 to
38. Through Ray's HAProxy (three turns) 3.3 and 6.7 to 7.1, and 6.5 to 6.9 and 14 to 18. Without a pause between requests and without the
wait the route took 4.8 to 6.1 and 22: what sleeps takes a while to wake up.
"""

# No `from __future__ import annotations` here: FastAPI resolves the annotations of these routes at run time.
import argparse
import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray import serve

from genopt.testing.ports import unused_port

LINE = "data: 1\n\n"
ROUNDS, WARM_UP = 40, 5
PAUSE_S = 0.02
alone, through = FastAPI(), FastAPI()


async def line_after(delay_s: float) -> AsyncIterator[str]:
    await asyncio.sleep(delay_s)
    yield LINE


@serve.deployment(max_ongoing_requests=32)
@serve.ingress(alone)
class Alone:
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    @alone.post("/line")
    async def line(self, body: dict[str, int]) -> StreamingResponse:
        return StreamingResponse(line_after(self._delay_s), media_type="text/event-stream")


@serve.deployment(max_ongoing_requests=32)
class Behind:
    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    async def lines(self, body: dict[str, int]) -> AsyncIterator[str]:
        async for line in line_after(self._delay_s):
            yield line


@serve.deployment(max_ongoing_requests=32)
@serve.ingress(through)
class Through:
    def __init__(self, behind: Any) -> None:
        self._behind = behind.options(stream=True)

    @through.post("/line")
    async def line(self, body: dict[str, int]) -> StreamingResponse:
        return StreamingResponse(self._behind.lines.remote(body), media_type="text/event-stream")


async def measured(url: str, at_once: int) -> float:
    """Median milliseconds from the question to the first byte."""
    async with httpx.AsyncClient(timeout=60) as client:

        async def first_byte_ms() -> float:
            began = time.perf_counter()
            async with client.stream("POST", url, json={"a": 1}) as response:
                pieces = response.aiter_bytes()
                await anext(pieces)
                took = time.perf_counter() - began
                async for _ in pieces:
                    pass
            return took * 1000

        found: list[float] = []
        for number in range(WARM_UP + ROUNDS):
            times = await asyncio.gather(*(first_byte_ms() for _ in range(at_once)))
            found += times if number >= WARM_UP else []
            await asyncio.sleep(PAUSE_S)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")  # as where genopt starts Ray itself
    port, delay_s = unused_port(), options.delay_ms / 1000
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Alone.bind(delay_s), name="alone", route_prefix="/alone")
    serve.run(Through.bind(Behind.bind(delay_s)), name="through", route_prefix="/through")
    for _ in range(options.turns):
        for at_once in (1, 8):
            for name, said in (("alone", "a route"), ("through", "with another deployment")):
                took = asyncio.run(measured(f"http://127.0.0.1:{port}/{name}/line", at_once))
                print(f"{said:24} {at_once} at once   +{took - options.delay_ms:.1f} ms", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
