"""Predictions: what transforms do to a footprint, what limits it, and how measurements correct the expectation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt import catalog
from genopt.plan import JsonValue, Plan, Prediction
from genopt.profiling.gains import gains, sentence
from genopt.profiling.roofline import Ceilings
from genopt.search.footprint import HEAD, MATRICES, MLP, NORMALISATION, PROJECTIONS, Footprint, Part
from genopt.search.predict import Pace, Predictor, interval, mean_error, promise, runtime_of
from genopt.techniques.onnx_weight_only import uniform

READ_GB_S, GFLOP_S = 40.0, 200.0
SMALL = Footprint(
    parts={
        PROJECTIONS: Part(weights=26e6, operations=52e6), MLP: Part(weights=80e6, operations=160e6), HEAD: Part(weights=28e6, operations=56e6),
        NORMALISATION: Part(weights=35e3),
    },
    state_bytes=2e6, layers=30,
)  # fmt: skip
"""About SmolLM2-135M in bf16."""

sizes = st.floats(min_value=1e3, max_value=1e12)
seconds = st.floats(min_value=1e-5, max_value=10.0)
shares = st.floats(min_value=0.0, max_value=1.0)


def of_experts(active: float) -> Footprint:
    """A footprint with experts, of which one token goes through this share."""
    experts = SMALL.parts[MLP].model_copy(update={"routed": 500e6, "active": active, "operations": 2 * (80e6 + active * 500e6)})
    return SMALL.model_copy(update={"parts": {**SMALL.parts, MLP: experts}})


def after(technique: str, params: dict[str, JsonValue], before: Footprint = SMALL) -> Footprint:
    found: Footprint = catalog.load("techniques", technique).footprint(before, params)
    return found


def limit(footprint: Footprint, streams: int = 1) -> float:
    return footprint.limit_s(READ_GB_S, GFLOP_S, streams)


def test_one_stream_of_a_small_model_is_limited_by_reading_its_weights() -> None:
    assert limit(SMALL) == pytest.approx((2 * 134.035e6 + 2e6) / 40e9)
    assert limit(SMALL, 32) == pytest.approx(32 * 268e6 / 200e9), "many streams share the weights, and arithmetic limits them"


@given(active=shares, streams=st.integers(min_value=1, max_value=512), bits=st.floats(min_value=1, max_value=16), kept=shares)
def test_streams_read_the_experts_of_one_token_at_least_and_all_of_them_at_most(active: float, streams: int, bits: float, kept: float) -> None:
    for footprint in (of_experts(active), of_experts(active).stored(bits), of_experts(active).with_layers(1 + 29 * kept)):
        one, here, more = (footprint.limit_s(READ_GB_S, math.inf, count) for count in (1, streams, streams + 1))
        weights = sum((part.weights + part.routed) * part.bits / 8 for part in footprint.parts.values())
        assert one <= here * (1 + 1e-9)
        assert here <= more * (1 + 1e-9)
        assert here <= (weights + streams * footprint.state_bytes) / (1e9 * READ_GB_S) * (1 + 1e-9)


@pytest.mark.parametrize("name", catalog.BUILT_IN["techniques"])
def test_techniques_change_experts_like_other_weights(name: str) -> None:
    """Where every expert is active, they are what a model without experts has."""
    apart = of_experts(1.0)
    part = apart.parts[MLP]
    together = apart.model_copy(
        update={"parts": {**apart.parts, MLP: part.model_copy(update={"weights": part.weights + part.routed, "routed": 0.0})}}
    )
    for streams in (1, 64):
        assert limit(after(name, {}, apart), streams) == pytest.approx(limit(after(name, {}, together), streams))


def test_half_of_the_layers_or_neurons_has_half_of_the_experts() -> None:
    assert of_experts(0.1).with_layers(15).parts[MLP].routed == 250e6
    assert of_experts(0.1).narrowed(0.5, (MLP,)).parts[MLP].routed == 250e6


def test_techniques_say_what_they_change() -> None:
    assert after("torchao_int8_weight_only", {}).parts[MLP].bytes == pytest.approx(80e6)
    assert after("torchao_int8_weight_only", {}).parts[HEAD].bytes == pytest.approx(56e6), "the head stays"
    assert after("torchao_int8_weight_only", {"head": True}).parts[HEAD].bytes == pytest.approx(28e6)
    exported = after("onnx_genai", {})
    assert exported.parts[MLP].bytes == pytest.approx(320e6)
    assert exported.state_bytes == pytest.approx(4e6)
    blocks = after("onnx_weight_only", {"block_size": 32, "symmetric": True}, exported)
    assert blocks.parts[HEAD].bits == pytest.approx(9.0)
    uneven = after("onnx_weight_only", {"block_size": 32, "symmetric": False}, exported)
    assert uneven.parts[HEAD].bits == pytest.approx(9.25)
    head = after("onnx_weight_only", {**uniform(4), "symmetric": True, "head": 32, "down_proj": 32}, exported)
    assert head.parts[HEAD].bits == 32
    assert head.parts[MLP].bits == pytest.approx(32 / 3 + 5 * 2 / 3)
    assert after("magnitude_prune", {"sparsity": 0.5}).parts == SMALL.parts, "zeros are read like other numbers"
    fewer = after("drop_layers", {"count": 3})
    assert fewer.layers == 27
    assert fewer.parts[MLP].weights == pytest.approx(0.9 * 80e6)
    assert fewer.parts[HEAD] == SMALL.parts[HEAD]
    narrower = after("prune_width", {"neurons": 0.25, "heads": 0.5})
    assert narrower.parts[MLP].weights == pytest.approx(0.75 * 80e6)
    assert narrower.state_bytes == pytest.approx(0.5 * SMALL.state_bytes)
    assert after("distill", {}) == SMALL


@pytest.mark.parametrize("name", catalog.BUILT_IN["techniques"])
def test_no_technique_makes_a_footprint_that_cannot_be(name: str) -> None:
    found = after(name, {"edge_layers": 32, "down_proj": 32, "gate_up_proj": 32} if name == "onnx_weight_only" else {})
    assert limit(found) > 0
    assert 0 < found.chance <= 1


@given(bits=st.floats(min_value=1, max_value=16), streams=st.integers(min_value=1, max_value=256))
def test_fewer_bits_never_raise_the_limit(bits: float, streams: int) -> None:
    assert limit(SMALL.stored(bits, families=MATRICES), streams) <= limit(SMALL, streams) * (1 + 1e-9)


@given(first=seconds, second=seconds, overhead=seconds)
def test_more_work_is_never_expected_to_take_less_time(first: float, second: float, overhead: float) -> None:
    pace = Pace(overhead)
    less, more = sorted([first, second])
    assert pace.expect(less, 1.0).seconds <= pace.expect(more, 1.0).seconds
    pace.observe(less, 1.0, 2 * less + overhead)
    assert pace.expect(less, 1.0).seconds <= pace.expect(more, 1.0).seconds


@given(limit_s=seconds, overhead=seconds, measured=seconds)
def test_a_measurement_narrows_the_expectation_and_draws_it_nearer(limit_s: float, overhead: float, measured: float) -> None:
    pace = Pace(overhead)
    before = pace.expect(limit_s, 1.0)
    pace.observe(limit_s, 1.0, measured)
    found = pace.expect(limit_s, 1.0)
    assert abs(found.seconds - measured) <= abs(before.seconds - measured) * (1 + 1e-6) or found.seconds >= measured
    low, high = interval(found)
    assert 0 < low <= found.seconds <= high


def test_what_was_measured_of_an_engine_predicts_its_other_formats() -> None:
    """Times of a runtime that reaches the full bandwidth after 1.1 ms, from a prior that expects 3 ms."""
    predictor = Predictor(READ_GB_S, GFLOP_S, 30)
    plan = Plan(name="any", engine="ort_genai")
    exported = after("onnx_genai", {})
    formats = [after("onnx_weight_only", {**uniform(bits), "block_size": block}, exported) for bits in (8, 4) for block in (32, 128)]
    errors = []
    for footprint in (exported, *formats):
        true = limit(footprint) + 1.1e-3
        errors.append(predictor.expect(plan, footprint, 1e-4).seconds / true - 1)
        predictor.observe(plan, footprint, 1e-4, true)
    assert abs(errors[0]) > 0.1
    assert max(map(abs, errors[2:])) < 0.1


def test_only_plans_that_run_alike_teach_about_one_another() -> None:
    eager, compiled = Plan(name="a", engine="torch", options={"compile": False}), Plan(name="b", engine="torch", options={"compile": True})
    spared = Plan(name="c", engine="torch", options={"compile": True, "spare_threads": 1})
    assert runtime_of(eager) != runtime_of(compiled) == runtime_of(spared)
    predictor = Predictor(READ_GB_S, GFLOP_S, 30)
    before = predictor.expect(compiled, SMALL, 2e-4)
    predictor.observe(eager, SMALL, 2e-4, 0.05)
    assert predictor.expect(compiled, SMALL, 2e-4) == before
    predictor.observe(spared, SMALL, 2e-4, 0.05)
    assert predictor.expect(compiled, SMALL, 2e-4).seconds > before.seconds


def test_the_promise_weighs_gain_chance_and_time() -> None:
    def expected(speedup: float | None, chance: float, seconds: float) -> float:
        return promise(Prediction(metric="tpot_ms", value=5, unit="ms", ci_low=4, ci_high=6, vs_baseline=speedup, chance=chance, seconds=seconds))

    assert expected(2.0, 0.9, 30) > expected(2.0, 0.9, 60) > expected(1.5, 0.9, 60) > expected(1.5, 0.3, 60) > 0
    assert expected(0.8, 1.0, 10) == expected(None, 1.0, 10) == promise(None) == 0


def test_the_mean_error_is_of_what_was_measured() -> None:
    assert mean_error([(11.0, 10.0), (8.0, 10.0), (5.0, 0.0)]) == pytest.approx(0.15)
    assert mean_error([]) is None


def test_gains_depend_on_what_bounds_the_step() -> None:
    ceilings = Ceilings(read_gb_s=READ_GB_S, matmul_gflop_s=GFLOP_S, formats={})
    at_limit = gains(limit(SMALL), SMALL, ceilings, (1, 64))
    one = {gain.remedy: gain for gain in at_limit if gain.streams == 1}
    many = {gain.remedy: gain for gain in at_limit if gain.streams == 64}
    assert one["4-bit weights"].bound == "memory"
    assert one["4-bit weights"].at_most == pytest.approx(3.4, abs=0.1)
    assert one["a faster engine or a compiled step"].at_most == pytest.approx(1.0)
    assert many["4-bit weights"].bound == "compute"
    assert many["4-bit weights"].at_most == pytest.approx(1.0)
    assert many["8-bit weights and activations"].at_most == pytest.approx(2.0)
    slow = gains(5 * limit(SMALL), SMALL, ceilings, (1,))
    assert slow[0].remedy == "a faster engine or a compiled step"
    assert slow[0].at_most == pytest.approx(5.0)
    assert slow[0].bound == "overhead"
    assert [gain.at_most for gain in slow[1:]] == [gain.at_most for gain in at_limit[1:5]], "overhead hides what fewer bytes bring"


def test_gains_are_said_in_words() -> None:
    ceilings = Ceilings(read_gb_s=READ_GB_S, matmul_gflop_s=GFLOP_S, formats={})
    found = gains(limit(SMALL), SMALL, ceilings, (1, 64))
    assert sentence(found, 1).startswith("At 1 stream decoding is memory-bound: 4-bit weights at most 3.")
    assert "4-bit weights and" in sentence(found, 64) or "and 4-bit weights" in sentence(found, 64)
    assert sentence(found, 64).endswith("will not help.")
    assert sentence(found, 7) == ""
    slow = gains(5 * limit(SMALL), SMALL, ceilings, (1,))
    assert sentence(slow, 1).startswith(
        "At 1 stream decoding is bound by overhead: a faster engine or a compiled step at most 5.0×, and beyond it 4-bit weights at most 3."
    )


@given(overhead=st.floats(min_value=0, max_value=1), streams=st.integers(min_value=1, max_value=512))
def test_no_remedy_makes_a_step_slower(overhead: float, streams: int) -> None:
    ceilings = Ceilings(read_gb_s=READ_GB_S, matmul_gflop_s=GFLOP_S, formats={})
    for gain in gains(limit(SMALL) + overhead, SMALL, ceilings, (streams,)):
        assert gain.at_most >= 1 - 1e-9
        assert math.isfinite(gain.at_most)
