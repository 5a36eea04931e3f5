"""What every technique and engine of the catalogue must keep to, as functions that a test calls once per entry.

Distributions that add entries can run the same functions on theirs.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from genopt import catalog
from genopt.engines.base import Generation, GenerationRequest, Joinable, RunningBatch, TextSession, TokenLogProbs
from genopt.environments.declaration import find
from genopt.environments.place import state_of
from genopt.errors import SpecError, StageError
from genopt.models.capability import capability
from genopt.plan import JsonValue, Plan
from genopt.process import SessionProcess, run_stage
from genopt.quality.audit import audit
from genopt.quality.decode_check import greedy_regret
from genopt.quality.generation import Continuation
from genopt.search.footprint import HEAD, MATRICES, Footprint, Part
from genopt.search.rules import objection, rule_of
from genopt.search.space import Space
from genopt.session_worker import SessionWorker
from genopt.store.artifacts import folder_digest
from genopt.tasks.base import needs_gpu, session_options
from genopt.techniques.base import TransformContext

UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy")
"""Endings of files whose loading may run code."""
ANY_DIGEST = "0" * 64
"""Stands for what a user gives beside the model."""
ANY_BUDGET_S = 600.0
POINTS = 3_000
"""Points of a space that are checked; the last choices change first."""


def check_technique(name: str, source: Path, params: dict[str, JsonValue], context: TransformContext, scratch: Path) -> Path:
    """Applies a technique twice and checks its promises; returns the folder with the result.

    Args:
        name: Its catalogue name.
        source: An artifact that it takes.
        params: Parameters that it takes.
        context: With calibration text where it needs some.
        scratch: An empty folder.
    """
    technique = catalog.load("techniques", name)
    assert technique.name == name
    assert technique.version >= 1
    assert technique.environment is None or technique.environment in catalog.names("environments")
    assert not technique.requires & technique.excludes
    with pytest.raises(SpecError, match=name):
        technique.check(source, {**params, "no_such_parameter": 1})
    _check_footprint(technique, params)
    for tunable in technique.tunables:
        for choice in tunable.choices:
            technique.check(source, {**params, tunable.name: choice})
    before, _ = folder_digest(source)
    digests = []
    for attempt in ("first", "second"):
        said: list[str] = []
        folder = scratch / attempt
        folder.mkdir()
        technique.check(source, params)
        if technique.environment is None:
            technique.apply(source, folder, params, context, said.append)
        else:
            said = _apply_elsewhere(technique, source, folder, params, context, scratch / f"{attempt}.log")
        assert said, "a technique says what it does"
        digests.append(folder_digest(folder)[0])
    assert folder_digest(source)[0] == before, "the source is never changed"
    assert digests[0] == digests[1], "the same input gives the same bytes"
    result = scratch / "first"
    assert not [path for path in result.rglob("*") if path.name.startswith(".") or path.suffix in UNSAFE]
    assert audit(result, 0).problems == ()
    named = [path for path in result.rglob("*.json") if str(source) in path.read_text(encoding="utf-8")]
    assert not named, "the same work has the same bytes wherever it is done, so none of them name a place"
    for path in source.rglob("tokenizer.json"):
        written, original = (Tokenizer.from_file(str(file)) for file in (result / path.relative_to(source), path))
        assert written.get_vocab() == original.get_vocab(), "the tokenizer comes along"
    return result


def _apply_elsewhere(technique: Any, source: Path, folder: Path, params: dict[str, JsonValue], context: TransformContext, log: Path) -> list[str]:
    """Applies a technique in the interpreter of its environment; returns the lines of its log."""
    payload = {
        "technique": technique.name, "source": str(source), "destination": str(folder), "params": params,
        "context": context.model_dump(mode="json", exclude={"time_limit_s"}),
    }  # fmt: skip
    run_stage("transform", payload, log=log, timeout_s=context.time_limit_s, threads=context.threads, where=technique.environment)
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _check_footprint(technique: Any, params: dict[str, JsonValue]) -> None:
    """A technique says what it changes about the work, and changes nothing else."""
    work = Footprint(parts={family: Part(weights=1e6, operations=2e6) for family in (*MATRICES, HEAD)}, state_bytes=1e4, layers=8)
    found = Footprint.model_validate(technique.footprint(work, params))
    assert found.parts.keys() == work.parts.keys()
    assert found.chance <= work.chance
    assert 0 < found.limit_s(10.0, 100.0) <= 2 * work.limit_s(10.0, 100.0)


def check_engine(
    name: str, artifact: Path, options: dict[str, JsonValue], *, vocabulary: int, context: int, apart: bool = False
) -> None:  # fmt: skip
    """Opens an artifact and checks that the session generates, scores, stops, cancels and refuses as promised.

    Args:
        name: Catalogue name.
        artifact: What it opens.
        options: Its options.
        vocabulary: Token ids of the model.
        context: Tokens that the model can hold.
        apart: Open it in a process of its own, as runs do, although its environment is ours.
    """
    engine = catalog.load("engines", name)
    check_declarations(engine, name, options)
    here = engine.environment is None and not apart
    with tempfile.TemporaryDirectory(prefix="genopt-contract-") as scratch:
        elsewhere = SessionProcess(name, artifact, options, log=Path(scratch, "log.txt"), timeout_s=300)
        session: TextSession = _opened_here(engine, artifact, options) if here else elsewhere.open(_ready(elsewhere, Path(scratch, "ready.txt")))
        try:
            _check_generation(session, vocabulary, late=0 if here else context - 40)
            batch = session.running_batch(3) if isinstance(session, Joinable) else None
            if batch is not None:
                _check_running_batch(session, batch, vocabulary)
            _check_scores(session, vocabulary)
            _check_distributions(session, vocabulary)
            _check_refusals(session, vocabulary, context)
            memory = session.memory()
            assert 0 < memory.rss_bytes <= memory.peak_rss_bytes
        finally:
            session.close()


def _opened_here(engine: Any, artifact: Path, options: dict[str, JsonValue]) -> TextSession:
    engine.prepare()
    session: TextSession = engine.open(artifact, options)
    return session


def _ready(session: SessionProcess, log: Path) -> SessionWorker:
    """A process that was made ready for a session before, as a bench makes the next one's."""
    worker = SessionWorker(session.setting, log).start()
    worker.prepare()
    worker.await_prepared(300)
    return worker


def check_declarations(engine: Any, name: str, options: dict[str, JsonValue]) -> None:
    """Checks what an engine says about itself without opening anything.

    Args:
        engine: The engine.
        name: Its catalogue name.
        options: Options that it takes.
    """
    assert engine.name == name
    assert engine.accepts
    assert engine.environment is None or engine.environment in catalog.names("environments")
    assert engine.layer_overhead_s >= 0
    engine.check(options)
    with pytest.raises(SpecError, match=name):
        engine.check({**options, "no_such_option": 1})
    for tunable in engine.tunables:
        for choice in tunable.choices:
            asked = {**options, **dict(tunable.when[:1]), tunable.name: choice}
            idle = {other.name for other in engine.tunables if other.when and not any(asked.get(owner) == value for owner, value in other.when)}
            plan = Plan(name="any", engine=name, options={option: value for option, value in asked.items() if option not in idle})
            _check_options(plan)
    assert engine.modality in catalog.names("sessions")


def _check_options(plan: Plan) -> None:
    """An engine takes the options of a plan that is searched on machines like this one."""
    if capability() is not None or not needs_gpu(plan):
        catalog.load("engines", plan.engine).check(session_options(plan, threads=2))


def runs_here(kind: catalog.Kind, name: str) -> bool:
    """Whether a technique's or engine's environment is built on this machine, and the GPU there that a technique cannot do without."""
    entry = catalog.load(kind, name)
    if kind == "techniques" and entry.gpu == "needed" and capability() is None:
        return False
    return entry.environment is None or state_of(find(entry.environment)) == "built"


def check_space(task: Any) -> None:
    """Checks what a task searches: all of its points can be put together, told apart and found again.

    Args:
        task: An entry of the catalogue's tasks.
    """
    space: Space = task.space()
    engines = {name: catalog.load("engines", name) for name in catalog.names("engines")}
    rules = {name: rule_of(catalog.load("techniques", name)) for name in catalog.names("techniques")}

    def unfit(plan: Plan, original: frozenset[str] = space.original) -> str:
        return objection(plan, [rules[step.technique] for step in plan.steps], engines[plan.engine].accepts, original)

    names: set[str] = set()
    identities: set[str] = set()
    for number, point in enumerate(itertools.islice(space.points(), POINTS), start=1):
        plan = space.plan(point)
        names.add(plan.name)
        identities.add(plan.identity())
        assert len(names) == len(identities) == number, f"{plan.name} is not the only one of its name or kind"
        assert space.point_of(plan) == space.complete(point) == point
        assert not unfit(plan), f"{plan.name}: {unfit(plan)}"
        _check_options(plan)
    assert task.seeds(), "a search begins somewhere"
    assert all(space.complete(seed) == seed for seed in task.seeds())
    assert not any(map(unfit, task.references()))
    catalogue = task.catalogue(dict.fromkeys(task.given, ANY_DIGEST), ANY_BUDGET_S)
    assert {plan.name for plan in task.catalogue({}, ANY_BUDGET_S)} <= {plan.name for plan in catalogue}
    for plan in catalogue:  # runs leave out those whose first step asks more of an original than this one has
        special = space.original | (rules[plan.steps[0].technique].requires if plan.steps else frozenset())
        assert not unfit(plan, special), f"{plan.name}: {unfit(plan, special)}"
    assert len({plan.name for plan in catalogue}) == len(catalogue)


def _prompt(vocabulary: int, length: int, start: int = 7) -> tuple[int, ...]:
    return tuple((start + 31 * place) % min(vocabulary, 256) for place in range(length))


def _check_generation(session: TextSession, vocabulary: int, *, late: int) -> None:
    """`late` is how many tokens may still be generated while a cancellation travels to another process."""
    asked = GenerationRequest(prompt_ids=_prompt(vocabulary, 20), max_new_tokens=12)
    (found,) = session.generate([asked])
    assert len(found.token_ids) == len(found.timestamps_ns) == 12
    assert found.finish_reason == "length"
    assert found.started_ns < found.timestamps_ns[0]
    assert list(found.timestamps_ns) == sorted(found.timestamps_ns)
    assert session.generate([asked])[0].token_ids == found.token_ids, "greedy generation is repeatable"
    stop = found.token_ids[5]
    (stopped,) = session.generate([asked.model_copy(update={"stop_token_ids": (stop,)})])
    assert stopped.token_ids == found.token_ids[: found.token_ids.index(stop)]
    assert stopped.finish_reason == "stop"
    seen: list[tuple[int, int]] = []
    scored: list[TokenLogProbs] = []
    other = GenerationRequest(prompt_ids=_prompt(vocabulary, 9, start=3), max_new_tokens=6)

    def on_token(index: int, token: int, log_probs: TokenLogProbs | None) -> bool:
        seen.append((index, token))
        if log_probs is not None:
            scored.append(log_probs)
        return index == 1 or len([one for one, _ in seen if one == 0]) < 3

    long = asked.model_copy(update={"max_new_tokens": 12 + late})
    first, second = session.generate([long, other.model_copy(update={"top_logprobs": 2})], on_token)
    assert first.finish_reason == "cancelled"
    assert 3 <= len(first.token_ids) <= 3 + late
    assert len(second.token_ids) == 6, "one row's end leaves the other alone"
    assert [token for index, token in seen if index == 1] == list(second.token_ids)
    assert len(scored) == 6, "log-probabilities come for the request that asked"
    assert all(entry.log_prob <= 0 and entry.top[0][0] == token for entry, token in zip(scored, second.token_ids, strict=True))
    sampled = other.model_copy(update={"temperature": 1.0, "top_p": 0.9, "seed": 5})
    assert session.generate([sampled])[0].token_ids == session.generate([sampled])[0].token_ids
    assert session.generate([]) == []


def _check_running_batch(session: TextSession, batch: RunningBatch, vocabulary: int) -> None:
    asked = {
        key: GenerationRequest(prompt_ids=_prompt(vocabulary, length, start=key), max_new_tokens=tokens)
        for key, (length, tokens) in enumerate([(20, 12), (9, 3), (31, 8), (5, 10), (14, 1)])
    }
    found: dict[int, Generation] = {}
    streamed: dict[int, list[int]] = {key: [] for key in asked}

    def step() -> None:
        outcome = batch.step()
        found.update(outcome.ended)
        for key, token, _ in outcome.tokens:
            streamed[key].append(token)

    assert not batch.busy
    for key in (0, 1, 2):  # each joins while those before it are under way
        batch.join(key, asked[key])
        while len(streamed[key]) < 2:
            step()
    while 1 not in found and 0 not in found:
        step()
    assert batch.busy, "the third goes on when another has ended"
    batch.join(3, asked[3])
    batch.join(4, asked[4])
    batch.join(5, asked[0])
    batch.leave(5)
    batch.leave(99)
    streamed[5] = []
    with pytest.raises(SpecError):
        batch.join(6, GenerationRequest(prompt_ids=(vocabulary,), max_new_tokens=1))
    while batch.busy:
        step()
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    assert found[5].finish_reason == "cancelled"
    assert len(found[5].token_ids) <= 1
    for key, request in asked.items():
        assert list(found[key].token_ids) == streamed[key] == list(session.generate([request])[0].token_ids), "company changes nothing"
        assert found[key].finish_reason == "length"
        assert found[key].started_ns <= found[key].timestamps_ns[0]
    batch.join(7, asked[3])  # a batch that everybody has left takes shorter ones too
    streamed[7] = []
    while batch.busy:
        step()
    assert streamed[7] == streamed[3]


def _check_scores(session: TextSession, vocabulary: int) -> None:
    sequences = [_prompt(vocabulary, 2), _prompt(vocabulary, 70, start=11)]
    scores = session.score(sequences)
    for sequence, log_probs, tops in zip(sequences, scores.log_probs, scores.top_ids, strict=True):
        assert len(log_probs) == len(tops) == len(sequence) - 1
        assert all(math.isfinite(value) and value <= 0 for value in log_probs)
        assert all(0 <= top < vocabulary for top in tops)
    prompts = [_prompt(vocabulary, 20), _prompt(vocabulary, 9, start=3)]
    requests = [GenerationRequest(prompt_ids=prompt, max_new_tokens=12) for prompt in prompts]
    for some in (requests[:1], requests):
        written = [Continuation(token_ids=one.token_ids, ended=False) for one in session.generate(some)]
        regret = greedy_regret(session, prompts[: len(some)], written, ())
        found = session.score([(*prompt, *new.token_ids[:1]) for prompt, new in zip(prompts, written, strict=False)])
        assert [tops[-1] for tops in found.top_ids] == [new.token_ids[0] for new in written], "what is scored is what generates"
        assert regret is not None
        assert regret < 0.01, f"and so to the end: its tokens are {regret:.4f} nats less likely"


def _check_distributions(session: TextSession, vocabulary: int) -> None:
    sequence = _prompt(vocabulary, 70, start=11)
    whole, few = session.distributions(sequence, vocabulary), session.distributions(sequence, 5)
    (log_probs,), (tops,) = session.score([sequence]).log_probs, session.score([sequence]).top_ids
    assert whole.id_log_probs.shape == (69, vocabulary)
    assert np.allclose(np.exp(whole.id_log_probs.astype(np.float64)).sum(axis=1), 1, atol=1e-3), "all tokens together are certain"
    assert (np.diff(few.id_log_probs, axis=1) <= 0).all(), "the most probable ones come first"
    assert np.allclose(few.id_log_probs, np.sort(whole.id_log_probs, axis=1)[:, :-6:-1], atol=1e-3)
    for found in (whole, few):
        assert np.allclose(found.log_probs, log_probs, atol=1e-3)
        assert np.array_equal(found.top_ids, tops)
    asked = session.distributions(sequence, few.ids[:, ::-1])
    assert np.array_equal(asked.ids, few.ids[:, ::-1])
    assert np.allclose(asked.id_log_probs, few.id_log_probs[:, ::-1], atol=1e-3)
    with pytest.raises(StageError):
        session.distributions(sequence, few.ids[1:])


def _check_refusals(session: TextSession, vocabulary: int, context: int) -> None:
    refused: list[Mapping[str, Any]] = [
        {"prompt_ids": _prompt(vocabulary, context), "max_new_tokens": 1},
        {"prompt_ids": (vocabulary,), "max_new_tokens": 1},
        {"prompt_ids": (-1,), "max_new_tokens": 1},
    ]
    for request in refused:
        with pytest.raises(SpecError):
            session.generate([GenerationRequest(**request)])
    with pytest.raises(SpecError):
        session.score([_prompt(vocabulary, context + 2)])
    assert session.generate([GenerationRequest(prompt_ids=(1, 2), max_new_tokens=2)])[0].finish_reason == "length", "a refusal breaks nothing"
