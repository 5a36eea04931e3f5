"""What the search asks Tune to try next, in the time that is left; needs no cluster."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as some

from genopt import clock
from genopt.clock import Moment
from genopt.distributed.searcher import BENCH, LOST, QualityOptunaSearch, SearchRequest
from genopt.plan import Candidate
from genopt.search.predict import runtime_of
from genopt.search.propose import VALUES, pool
from genopt.search.space import ENGINE
from genopt.spec import build
from genopt.tasks.text_generation import TextGeneration

SPACE = TextGeneration.space()
EXPORTED, EAGER, COMPILED = (
    SPACE.complete(choices) for choices in ({ENGINE: "ort_genai"}, {ENGINE: "torch", "torch.compile": False}, {ENGINE: "torch"})
)
POOL = pool(
    SPACE, 0,
    wanted=lambda point: point[ENGINE] in ("ort_genai", "torch")
    and not any(point.get(name) for name in ("drop_layers", "ort_genai.lookahead", "torch.attention")),
)  # fmt: skip


def searcher(left_s: float, seconds: dict[str, float], known: tuple[str, ...] = (), benches: int = 1) -> QualityOptunaSearch:
    request = SearchRequest(
        spec=build({"model": "any"}), task="text-generation", baseline=Candidate(name="baseline", status="accepted", reason="", engine="torch"),
        seeds=(EXPORTED,), known=known, deadline=Moment.of(clock.now() + left_s), expected_s=seconds, guard_s=5.0, trials=None,
    )  # fmt: skip
    return QualityOptunaSearch(request, POOL, benches)


def seconds(exported: float, eager: float, compiled: float) -> dict[str, float]:
    return {runtime_of(SPACE.plan(point)): value for point, value in ((EXPORTED, exported), (EAGER, eager), (COMPILED, compiled))}


def test_what_takes_longer_than_is_left_is_not_proposed() -> None:
    found = searcher(60.0, seconds(exported=5, eager=500, compiled=900))
    points = [found.suggest(f"trial-{number}") for number in range(8)]
    assert [point[ENGINE] for point in points] == ["ort_genai"] * 8
    assert len({SPACE.plan(point).identity() for point in points}) == 8


def test_an_engine_that_proves_slow_ends_its_own_trials_and_not_those_of_others() -> None:
    """Both PyTorch runtimes take longer than is left, as their first trials show; the other engine's trials go on."""
    found = searcher(100.0, seconds(exported=5, eager=5, compiled=5))
    slow: list[str] = []
    for number in range(80):
        point = found.suggest(f"trial-{number}")
        runtime = runtime_of(SPACE.plan(point))
        assert runtime not in slow
        slow += [runtime] if point[ENGINE] == "torch" else []
        took = 1_000.0 if point[ENGINE] == "torch" else 5.0
        found.on_trial_complete(f"trial-{number}", {**dict.fromkeys(VALUES, 1.0), LOST: False, "seconds": took})
        if len(slow) == 2:
            break
    assert len(slow) == 2
    assert found.suggest("late")[ENGINE] == "ort_genai"


def test_it_ends_where_nothing_is_done_in_time() -> None:
    found = searcher(4.0, seconds(exported=5, eager=5, compiled=5))
    assert found.suggest("trial") == QualityOptunaSearch.FINISHED


@settings(max_examples=20)
@given(some.integers(1, 6), some.lists(some.tuples(some.integers(0, 5), some.booleans()), max_size=8))
def test_each_trial_has_a_bench_to_itself(benches: int, ends: list[tuple[int, bool]]) -> None:
    found = searcher(1_000.0, seconds(exported=5, eager=5, compiled=5), benches=benches)
    running = {f"first-{number}": found.suggest(f"first-{number}")[BENCH] for number in range(benches)}
    assert set(running.values()) == set(range(benches))
    for number, (place, fails) in enumerate(ends):
        ended = sorted(running)[place % benches]
        found.on_trial_complete(ended, None if fails else {**dict.fromkeys(VALUES, 1.0), LOST: False, "seconds": 5.0})
        left = running.pop(ended)
        running[f"next-{number}"] = found.suggest(f"next-{number}")[BENCH]
        assert running[f"next-{number}"] == left
