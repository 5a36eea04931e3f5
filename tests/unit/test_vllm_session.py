"""Requests under way in vLLM, and the memory that they need, with a stand-in for its engine."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import types
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genopt.engines import vllm_session
from genopt.engines.base import GenerationRequest
from genopt.engines.vllm_loop import EngineLoop
from genopt.engines.vllm_options import VllmOptions
from genopt.engines.vllm_reader import TextReader
from genopt.engines.vllm_session import VllmSession
from genopt.errors import SpecError, StageError
from genopt.text_calls import TextCalls

PER_TOKEN = 2 * 2 * 3 * 4 * 16  # bytes, keys and values, layers, heads, their size


@dataclass
class Output:
    """As vLLM tells of one token of a request."""

    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: None = None


class Worker(TextReader):
    """vLLM's, with caches of its model's layers."""

    def __init__(self, caches: list[Any]) -> None:
        groups = [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=tokens)) for tokens in (16, 512)]
        self.model_runner = SimpleNamespace(kv_caches=caches, kv_cache_config=SimpleNamespace(kv_cache_groups=groups))


@dataclass
class Engine:
    """vLLM's, which says of each request what a test puts into its queue, by the order in which they came."""

    worker: Worker
    said: list[asyncio.Queue[Output | Exception]] = field(default_factory=list)
    begun: int = 0
    ended: int = 0

    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=512, dtype=torch.bfloat16, get_vocab_size=lambda: 300, get_num_layers=lambda _: 3, get_num_kv_heads=lambda _: 4,
            get_head_size=lambda: 16, get_and_verify_max_len=lambda _: 512,
        ),
        parallel_config=None, cache_config=SimpleNamespace(cache_dtype="auto"),
    )  # fmt: skip

    async def generate(self, prompt: Mapping[str, Any], sampling: object, name: str) -> AsyncGenerator[SimpleNamespace, None]:
        said = self.said[self.begun]
        self.begun += 1
        try:
            while True:
                found = await said.get()
                if isinstance(found, Exception):
                    raise found
                yield SimpleNamespace(outputs=[found])
                if found.finish_reason is not None:
                    return
        finally:
            self.ended += 1

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        return [{"memory_of_worker": self.worker.memory_of_worker, "tokens_of_block": self.worker.tokens_of_block}[method](*args)]

    def shutdown(self) -> None:
        pass


@pytest.fixture
def engine() -> Engine:
    pool = torch.zeros(1_000_000, dtype=torch.int8)
    return Engine(Worker([pool[:500_000].view(torch.bfloat16), pool[500_000:], [torch.zeros(2_000), torch.zeros(3_000)]]))


@pytest.fixture
def library(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    library, sampling = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    vars(library)["SamplingParams"] = SimpleNamespace
    vars(sampling)["RequestOutputKind"] = SimpleNamespace(DELTA="delta")
    monkeypatch.setitem(sys.modules, "vllm", library)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(vllm_session, "open_loop", lambda *_: EngineLoop(engine))  # type: ignore[arg-type]
    yield
    sys.modules.pop("genopt.engines.vllm_batch")  # what it imported from the stand-in is no use to others


@pytest.fixture
def session(library: None) -> Iterator[VllmSession]:
    with contextlib.closing(VllmSession(Path(), VllmOptions())) as opened:
        yield opened


def steps(session: VllmSession) -> tuple[TextCalls, list[dict[str, Any]]]:
    """The session as others talk to it, and what it tells them."""
    told: list[dict[str, Any]] = []
    calls = TextCalls(session, SimpleNamespace(write=told.append))  # type: ignore[arg-type]
    assert calls.answer("joinable", {"slots": 4}, stream=False)
    return calls, told


def says(engine: Engine, *outputs: Output | Exception) -> None:
    """What a request's answer will be; requests come in the order of these calls."""
    said: asyncio.Queue[Output | Exception] = asyncio.Queue()
    for output in outputs:
        said.put_nowait(output)
    engine.said.append(said)


def answer(*tokens: int) -> list[Output]:
    return [Output([token], "length" if place == len(tokens) - 1 else None) for place, token in enumerate(tokens)]


def ask(length: int, tokens: int = 3) -> GenerationRequest:
    return GenerationRequest(prompt_ids=(1,) * length, max_new_tokens=tokens)


def test_the_room_that_a_worker_reserved_is_told_beside_what_requests_filled(engine: Engine, session: VllmSession) -> None:
    assert engine.worker.memory_of_worker()["kv_reserved_bytes"] == 1_000_000 + 20_000, "layers that share memory take it once"
    assert session.memory().kv_cache_bytes == 0
    for _ in range(3):
        says(engine, *answer(5, 6, 7))
    session.generate([ask(10), ask(20)])
    together = session.memory()
    assert (together.kv_reserved_bytes, together.kv_bytes_per_token) == (1_020_000, PER_TOKEN)
    session.generate([ask(1)])
    assert session.memory().kv_cache_bytes == together.kv_cache_bytes, "the most that was held counts"
    assert 33 <= together.kv_cache_bytes / PER_TOKEN <= 36


def test_no_more_is_filled_than_was_reserved(engine: Engine, session: VllmSession) -> None:
    for _ in range(4):
        says(engine, *answer(5, 6, 7))
    session.generate([ask(400) for _ in range(4)])
    assert session.memory().kv_cache_bytes == 1_020_000


@pytest.mark.parametrize(("fitted", "options", "longest"), [(512, {}, 512), (448, {}, 432), (448, {"max_context": 448}, 448)])
def test_a_context_that_was_fitted_to_memory_is_the_session_s(
    fitted: int, options: dict[str, Any], longest: int, engine: Engine, library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.vllm_config.model_config, "max_model_len", fitted)
    with contextlib.closing(VllmSession(Path(), VllmOptions(**options))) as session:
        says(engine, *answer(5, 6, 7))
        session.generate([ask(longest - 3)])
        with pytest.raises(SpecError, match=f"{longest + 1} tokens are more than this session's context of {longest}"):
            session.generate([ask(longest - 2)])


def join(calls: TextCalls, key: int, request: GenerationRequest) -> None:
    calls.tell({"join": key, "request": request.model_dump(mode="json")})


def test_who_joins_or_leaves_does_not_wait_for_the_prompt_of_another(engine: Engine, session: VllmSession) -> None:
    calls, told = steps(session)
    says(engine)  # a prompt that is being read
    says(engine, *answer(5, 6, 7))
    join(calls, 0, ask(400))
    assert calls.advance()
    assert told == [], "it only waited, which is no progress"
    join(calls, 1, ask(2))
    while not (told and told[-1]["ended"]):
        assert calls.advance()
    assert told[-1]["ended"] == [[1, "length"]]
    calls.tell({"leave": 0})
    calls.advance()
    assert told[-1] == {"step": [], "ended": [[0, "cancelled"]]}
    assert not calls.advance()


def test_a_request_that_fails_leaves_an_empty_batch_for_those_that_follow(engine: Engine, session: VllmSession) -> None:
    calls, told = steps(session)
    says(engine)
    says(engine, RuntimeError("no room"))
    says(engine, *answer(5, 6, 7))
    join(calls, 0, ask(9))
    join(calls, 1, ask(9))
    while not told:
        assert calls.advance()
    assert (told[0]["failed"], told[0]["error"]["type"]) == ([0, 1], "StageError")
    assert not session.running_batch(4).busy
    assert session.generate([ask(9)])[0].token_ids == (5, 6, 7)
    session.memory()  # asked in the loop, which has done by then what came before
    assert engine.ended == 3, "the one that had not failed is cancelled"
    says(engine, Output([], "abort"))
    with pytest.raises(StageError, match="ended a request with 'abort'"):
        session.generate([ask(9)])
    assert not session.running_batch(4).busy


def test_a_batch_is_empty_whatever_was_under_way(engine: Engine, session: VllmSession) -> None:
    says(engine)
    session.running_batch(4).join(0, ask(9))
    assert not session.running_batch(4).busy
