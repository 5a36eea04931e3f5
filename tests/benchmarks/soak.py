"""Load at 70 % of capacity while replicas are killed, one a minute.

    python tests/benchmarks/soak.py [--minutes 30] [--every 60] [--replicas 2]

With the fake engine, whose answers are known, or with --engine (see serving_overhead.py), whose greedy answers are first asked for without
faults. Half of the requests are streamed. What is refused (429, 503) is asked for again as OpenAI's client does: twice, after Retry-After.
Every `--every` seconds one replica's process is killed with SIGKILL, in turn the replica itself and its engine's process. Exits with 1
unless every request that is not streamed was answered, every stream was complete or ended in an error event, and no answer differs from
the reference (a broken stream has to be its beginning).

On 2 virtual cores (2026-11-28, fake engine, 30 minutes, 29 kills): of 12,950 requests all 6,475 whole answers were right, 6,439 streams complete and
36 ended in an error event; of 13,099 with gRPC between Serve's processes 6,549, 6,513 and 37. SmolLM2 at int8 in ONNX Runtime, two replicas of one
thread each: of 8,499 requests (4.7 a second) all 4,249 whole answers were right, 4,214 streams complete, 36 ended in an error event.
On 2 cores of an AMD EPYC server (2026-11-29, fake engine, 30 minutes, 29 kills, runs of genopt beside it): of 14,210 requests all 7,105 whole
answers were right, 7,065 streams complete, 40 ended in an error event.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter

import httpx
import psutil
from served import add_arguments, served, subject

from genopt.measure.arrivals import arrivals
from genopt.serving.manifest import Scaling

SLOTS = 4
PROMPTS = 8
RETRIES = 2
"""Of OpenAI's client, where it is not told otherwise."""
REFUSED = (429, 503)


class Soak:
    """Sends requests and checks what comes back."""

    def __init__(self, url: str, tokens: int) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))
        self._tokens = tokens
        self._reference: dict[int, str] = {}
        self.ends: Counter[str] = Counter()
        self.retried = 0
        self.began = time.monotonic()

    def _body(self, prompt: int, stream: bool) -> dict[str, object]:
        return {"model": "m", "prompt": f"Count from {prompt}:", "max_tokens": self._tokens, "temperature": 0, "stream": stream}

    async def learn(self) -> None:
        """The greedy answers of a deployment without faults."""
        for prompt in range(PROMPTS):
            answer = await self._http.post("/v1/completions", json=self._body(prompt, False))
            self._reference[prompt] = answer.json()["choices"][0]["text"]

    async def capacity(self, seconds: float, workers: int) -> float:
        """Requests per second with all places taken."""
        began, done = time.monotonic(), 0

        async def work() -> None:
            nonlocal done
            while time.monotonic() - began < seconds:
                await self._http.post("/v1/completions", json=self._body(done % PROMPTS, False))
                done += 1

        await asyncio.gather(*(work() for _ in range(workers)))
        return done / (time.monotonic() - began)

    async def _refused(self, answer: httpx.Response, attempt: int) -> bool:
        """Whether to ask again, after the time that the server named."""
        if answer.status_code not in REFUSED or attempt == RETRIES:
            return False
        self.retried += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
        return True

    async def _asked(self, prompt: int) -> httpx.Response:
        for attempt in range(RETRIES + 1):
            answer = await self._http.post("/v1/completions", json=self._body(prompt, False))
            if not await self._refused(answer, attempt):
                break
        return answer

    def _lost(self, end: str) -> None:
        """Counts a request that should have been answered, and says when that was."""
        self.ends[end] += 1
        print(f"  at {time.monotonic() - self.began:.0f} s {end}", flush=True)

    async def whole(self, prompt: int) -> None:
        try:
            answer = await self._asked(prompt)
        except httpx.HTTPError as error:
            self._lost(f"whole: {type(error).__name__}")
            return
        if answer.status_code != 200:
            self._lost(f"whole: {answer.status_code} {answer.json()['error']['code']}")
        else:
            same = answer.json()["choices"][0]["text"] == self._reference[prompt]
            self.ends["whole: right" if same else "whole: WRONG"] += 1

    async def stream(self, prompt: int, attempt: int = 0) -> None:
        text, end = "", "cut off"
        try:
            async with self._http.stream("POST", "/v1/completions", json=self._body(prompt, True)) as answer:
                if await self._refused(answer, attempt):
                    return await self.stream(prompt, attempt + 1)
                if answer.status_code != 200:
                    end = f"{answer.status_code} before any text"
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        end = "complete"
                    elif line.startswith("data: ") and "error" in (event := json.loads(line[6:])):
                        end = "ended with an error event"
                    elif line.startswith("data: "):
                        text += "".join(choice["text"] for choice in event["choices"])
        except httpx.HTTPError as error:
            end = type(error).__name__
        expected = self._reference[prompt]
        right = text == expected if end == "complete" else expected.startswith(text)
        self.ends[f"stream: {end}{'' if right else ', WRONG'}"] += 1

    async def run(self, rate: float, seconds: float, every_s: float) -> None:
        self.began, due, kills = time.monotonic(), every_s, 0
        async with asyncio.TaskGroup() as group:
            for index, at in enumerate(arrivals("poisson", rate, seed=1)):
                if at > seconds:
                    break
                await asyncio.sleep(max(0.0, self.began + at - time.monotonic()))
                group.create_task((self.whole if index % 2 else self.stream)(index // 2 % PROMPTS))
                if at > due:
                    due += every_s
                    kills += kill_one(kills % 2 == 1)
        print(f"{index} requests at {rate:.1f}/s in {seconds:.0f} s, {kills} replicas killed, {self.retried} refusals asked again")


def kill_one(engine_only: bool) -> bool:
    """Kills an engine replica of this process's Ray, or the process that its engine runs in."""
    below = psutil.Process(os.getpid()).children(recursive=True)
    replicas = [one for one in below if "ServeReplica:genopt:Engine" in " ".join(one.cmdline())]
    if not replicas:
        return False
    victim = random.Random(time.time_ns()).choice(replicas)
    inside = victim.children() if engine_only else []
    os.kill((inside[0] if inside else victim).pid, signal.SIGKILL)
    return True


async def soak(url: str, options: argparse.Namespace) -> bool:
    found = Soak(url, options.max_tokens)
    await found.learn()
    rate = options.share * await found.capacity(5, SLOTS * options.replicas)
    await found.run(rate, 60 * options.minutes, options.every)
    for end, count in sorted(found.ends.items()):
        print(f"  {count:6} {end}")
    return set(found.ends) <= {"whole: right", "stream: complete", "stream: ended with an error event"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity of all replicas")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    scaling = Scaling(
        target_ongoing_requests=SLOTS, max_ongoing_requests=2 * SLOTS, max_queued_requests=16 * SLOTS, min_replicas=options.replicas,
        max_replicas=options.replicas,
    )  # fmt: skip
    with subject(options) as what, served(what, scaling) as endpoint:
        return int(not asyncio.run(soak(endpoint.url, options)))


if __name__ == "__main__":
    sys.exit(main())
