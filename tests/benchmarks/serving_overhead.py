"""What Serve costs: the same requests through the API and on the engine itself.

    python tests/benchmarks/serving_overhead.py [--delay-ms 20] [--requests 64]
    python tests/benchmarks/serving_overhead.py --engine ort_genai --artifact FOLDER --model-folder FOLDER [--threads 2]
    python tests/benchmarks/serving_overhead.py --arrivals 0.7

Both sides continue the same prompts greedily, C at a time in a closed loop, and take turns (ABBA). In a closed loop the server decides
when the next requests come: those of an engine by itself come in the moment in which others end, and through Serve a little later, so
that other prompts wait for each other. With --arrivals both sides get the same requests at the same random times (Poisson), that share of
what the engine by itself manages with C streams. The engine itself runs in a process that does nothing else: requests join its running
batch as in a replica, without tokenizer, HTTP or Ray. The load client runs on the same machine as the server, and what it takes of the
processors counts against Serve. Prints by concurrency:

goodput      Served output tokens per second of requests within twice the engine's own 99th percentiles of TTFT and TPOT, as a share of the
             engine's output. Goal: 95 % or more.
added TTFT   Difference of the medians. Goal: 5 ms or less.
added TPOT   Likewise. Goal: 0.5 ms or less at concurrency 8.

On 2 virtual cores of a Xeon (2026-11-28), fake engine, every token sent: TPOT +0.06 ms (1 stream) and +0.14 ms (8), TTFT +13 and +36 ms; without
gRPC between Serve's processes +0.13, +0.11, +17 and +57. On 2 cores of an AMD EPYC (2026-11-29): TPOT +0.09 and +0.08 ms, TTFT +12 and +39 ms,
goodput 97.5 % (1 stream). With 8, which begin together, the engine's first step serves the first that comes and the others wait for it to end,
so that most first tokens are later than twice the 20 ms that this engine takes by itself, and goodput, which asks for that, says little. With
--arrivals 0.7 (8.7 requests a second, four turns): TTFT +15.2 ms (29.9 to 45.1), TPOT +0.09, goodput 100.6 %; through HAProxy +11.3, +0.09, 100.6 %.
SmolLM2 at int8 with --threads 1 on both sides and --arrivals 0.7 (3.6 requests a second): TTFT +35 ms (140 to 175), TPOT +0.21 (23.7 to 23.9),
goodput 100.8 %.

Where the first token's time goes (one stream, 20 ms of which are the engine's, in milliseconds since the request was sent; through HAProxy in
brackets): 3.3 the API has the request (1.5), 6.6 and its body (1.8), 9.6 the engine's replica has it (4.6), 10.0 the engine's process is asked (5.0),
30.7 it has answered (25.9), 32.3 the API has the text (27.7), 34.8 and the caller (29.0). What is genopt's own are 0.3 ms of the API, 0.4 until the
process is asked, and 0.7 on the way to it and back; the rest is Serve's, which by itself takes no less: see serving_floor.py. Serve's settings that
keep router and user code in one thread changed nothing (RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD, RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP).

Closed loops with a real engine:
SmolLM2 at int8 in ONNX Runtime on both cores, pieces every 50 ms, beside client and server: TPOT +1.5 ms (9.6 to 11.1) and +2.9 ms (55.9 to
58.8), TTFT +27 and +182 ms, goodput 85 % and 92 %; without gRPC +1.2, +11.4, +31 and +225 ms, 86 % and 82 %; with every token sent and without
gRPC 78 % and 78 %. What is lost are the processors that client, proxy and replicas take from the engine.
With --threads 1 on both sides, so that one processor is left to client and server: goodput 97 % (1 stream) and 97 % (8), TPOT no longer (18.6 and
18.1 ms, 91 and 82), TTFT +39 and +654 ms, on the EPYC +25 and +328. The engine by itself shows the same where the next request comes 10 to 50 ms
after the end of another: the median TTFT of 8 streams grew from 148 to 333 ms, as TPOT fell from 48 to 38 ms and its output grew by 14 %.
Ray's HAProxy in place of its own proxy (RAY_SERVE_ENABLE_HA_PROXY=1) is not the default here: its page of statistics listens on every
interface, and whole answers are made to their end though their callers left (the one of 45 cases in tests/ray/test_serving.py that fails there).
API and engine in one replica, without the call between them (an experiment on 2 cores of an AMD EPYC, 2026-11-29, two runs each, in turns):
TTFT +6.5 and +8.7 ms (1 stream), +18 and +35 (8), where the two deployments took +10.9 and +33.9. It is not the design: what is lost with a
replica could not be asked again, and keys, limits and a canary's share would be each replica's own.
vLLM at FP8 on an H200 (8B shape, its asynchronous engine, 128 streams, 512 answers of 128 tokens, two turns, --prompt-tokens 512, which before the
server counted them were 358 words, each byte a token): 2,249 output tokens a second by itself and 2,363 through Serve (1.05), TPOT 32.2 and 33.8 ms,
TTFT 3.5 and 2.6 s.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import time

from served import Subject, add_arguments, served, subject

from genopt import catalog
from genopt.engines.base import GenerationRequest, RunningBatch
from genopt.measure.arrivals import arrivals
from genopt.measure.load_spec import LoadSpec
from genopt.measure.load_test import load_test
from genopt.measure.made_prompts import made_prompts, tokenization_of
from genopt.measure.statistics import percentiles
from genopt.serving.exchange import ChatMessage
from genopt.serving.manifest import Scaling
from genopt.serving.text import ModelText

Times = dict[str, list[float]]
PLACES = 4
"""Times as many places for requests that arrive by themselves, of which there are now fewer and now more."""


def direct(what: Subject, concurrency: int, requests: int, max_tokens: int, prompt_tokens: int, seed: int, rate: float | None) -> Times:
    """Times of requests on the engine's running batch; as many as it has places warm it up.

    Args:
        what: What is served.
        concurrency: Streams in the closed loop.
        requests: How many.
        max_tokens: Of each.
        prompt_tokens: About how many.
        seed: Of prompts and arrivals.
        rate: Requests per second that arrive by themselves; None is the closed loop.
    """
    text = ModelText(what.model_folder)
    session = catalog.load("engines", what.engine).open(what.artifact, what.options)
    batch = session.running_batch(concurrency if rate is None else PLACES * concurrency)

    def ids(content: str) -> tuple[int, ...]:
        return text.chat_ids([ChatMessage(role="user", content=content)])

    async def count(content: str, number: int) -> int:
        return len(ids(content))

    tokenization = asyncio.run(tokenization_of(prompt_tokens, count, seed=seed))
    prompt = made_prompts(prompt_tokens, seed=seed, tokenization=tokenization)  # as the load test makes them
    asked = [
        GenerationRequest(prompt_ids=ids(prompt(index)), max_new_tokens=max_tokens, stop_token_ids=text.stop_token_ids)
        for index in range(concurrency + requests)
    ]
    continued(batch, asked[:concurrency], [0.0] * concurrency)
    found = continued(batch, asked[concurrency:], [0.0] * concurrency if rate is None else arriving(rate, requests, seed))
    session.close()
    return found


def arriving(rate: float, requests: int, seed: int) -> list[float]:
    return list(itertools.islice(arrivals("poisson", rate, seed=seed), requests))


def continued(batch: RunningBatch, asked: list[GenerationRequest], due: list[float]) -> Times:
    """Continues requests that arrive when they are due, in seconds; those after them when a former one has ended, counted from then."""
    found: Times = {"ttft_ms": [], "tpot_ms": [], "output_tok_s": []}
    began, tokens, sent, ended = time.monotonic(), 0, 0, 0
    arrived: list[float] = []
    while ended < len(asked):
        now = time.monotonic() - began
        while sent < min(len(asked), len(due)) and due[sent] <= now:
            batch.join(sent, asked[sent])
            arrived.append(due[sent])
            sent += 1
        if not batch.busy:
            time.sleep(max(0.0, due[sent] - now))
            continue
        outcome = batch.step()
        tokens += len(outcome.tokens)
        for key, generation in outcome.ended:
            ended += 1
            due.append(time.monotonic() - began)
            times = generation.timestamps_ns
            found["ttft_ms"].append((times[0] / 1e9 - began - arrived[key]) * 1e3)
            if len(times) > 1:
                found["tpot_ms"].append((times[-1] - times[0]) / (len(times) - 1) / 1e6)
    found["output_tok_s"].append(tokens / (time.monotonic() - began))
    return found


def through_serve(url: str, concurrency: int, options: argparse.Namespace, seed: int, rate: float | None, limits: dict[str, float]) -> Times:
    """The same through the API."""
    load = {"concurrency": (concurrency,)} if rate is None else {"rate": (rate,)}
    spec = LoadSpec(
        url=url, **load, requests=options.requests, max_tokens=options.max_tokens, prompt_tokens=options.prompt_tokens, seed=seed
    )  # fmt: skip
    (level,) = load_test(spec).levels
    assert level.succeeded == level.sent, level.errors
    good = [one for one in level.samples if (one.ttft_ms or 0) <= limits["ttft_ms"] and (one.tpot_ms or 0) <= limits["tpot_ms"]]
    return {
        "ttft_ms": [one.ttft_ms for one in level.samples if one.ttft_ms is not None],
        "tpot_ms": [one.tpot_ms for one in level.samples if one.tpot_ms is not None],
        "output_tok_s": [sum(one.tokens or 0 for one in good) / level.wall_s],
    }


def in_a_process(what: Subject, concurrency: int, options: argparse.Namespace, seed: int, rate: float | None) -> Times:
    asked = [concurrency, options.requests, options.max_tokens, options.prompt_tokens, seed, rate]
    done = subprocess.run([sys.executable, __file__, "--direct", what.model_dump_json(), json.dumps(asked)], stdout=subprocess.PIPE, check=True)
    found: Times = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if "--direct" in sys.argv:
        print(json.dumps(direct(Subject.model_validate_json(sys.argv[2]), *json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--stream-interval-ms", type=float, default=50.0, help="as in serve.yaml: shortest time between two pieces of a stream")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--arrivals", type=float, metavar="SHARE", help="requests arrive by themselves, at this share of what the engine manages")
    options = parser.parse_args()
    most = max(options.concurrency)
    places = most if options.arrivals is None else PLACES * most
    scaling = Scaling(target_ongoing_requests=places, max_ongoing_requests=2 * places, max_queued_requests=4 * places, min_replicas=1, max_replicas=1)
    with subject(options) as what, served(what, scaling, stream_interval_ms=options.stream_interval_ms) as endpoint:
        for concurrency in options.concurrency:
            sides: dict[str, Times] = {side: {"ttft_ms": [], "tpot_ms": [], "output_tok_s": []} for side in ("engine", "served")}
            limits = {"ttft_ms": float("inf"), "tpot_ms": float("inf")}
            rate = None
            if options.arrivals is not None:
                manages = in_a_process(what, concurrency, options, 0, None)["output_tok_s"][0]
                rate = options.arrivals * manages / options.max_tokens
            for turn in range(options.turns):
                for side in ("engine", "served") if turn % 2 == 0 else ("served", "engine"):
                    if side == "engine":
                        found = in_a_process(what, concurrency, options, turn, rate)
                        limits = {name: 2 * percentiles(found[name])[2] for name in limits}
                    else:
                        found = through_serve(endpoint.url, concurrency, options, turn, rate, limits)
                    for name, values in found.items():
                        sides[side][name] += values
            print(f"concurrency {concurrency}" if rate is None else f"{rate:.2f} requests a second, {options.arrivals:.0%} of {concurrency} streams")
            middle = {side: {name: statistics.median(values) for name, values in times.items()} for side, times in sides.items()}
            for name in ("ttft_ms", "tpot_ms"):
                engine, through = middle["engine"][name], middle["served"][name]
                print(f"  {name:12} engine {engine:8.2f}   served {through:8.2f}   added {through - engine:7.2f} ms")
            engine, through = middle["engine"]["output_tok_s"], middle["served"]["output_tok_s"]
            print(f"  output tok/s engine {engine:8.1f}   served {through:8.1f}   goodput {through / engine:.1%}", flush=True)


if __name__ == "__main__":
    main()
