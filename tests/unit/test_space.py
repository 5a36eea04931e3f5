from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genopt.plan import Plan, Step
from genopt.search.precision import tells_families
from genopt.search.propose import encoded, pool
from genopt.search.rules import ORIGINAL, Rule, objection, reaches
from genopt.search.space import Choice, Dimension, Owner, Space, Tunable
from genopt.tasks.base import needs_gpu
from genopt.tasks.text_generation import TextGeneration
from genopt.testing.contracts import check_space
from genopt.testing.fake_task import FakeTask
from genopt.testing.plugin import write_plugin

HF, ONNX = frozenset({"hf"}), frozenset({"onnx"})
QUANTIZED = frozenset({"quantized"})


def owner(name: str, *tunables: Tunable, phase: int = 0, accepts: frozenset[str] = frozenset(), **rule: frozenset[str]) -> Owner:
    return Owner(name=name, word=name, tunables=tunables, accepts=accepts, rule=Rule(name=name, phase=phase, **rule) if phase else None)


BITS = Tunable(name="bits", choices=(8, 4), words=("", "4-bit"))
EDGES = Tunable(name="edges", choices=(None, 8), words=("", "edges8"), when=(("bits", 4),))
SPACE = Space(
    engines=(owner("plain", accepts=HF), owner("exported", accepts=ONNX)),
    techniques=(
        owner("cut", Tunable(name="count", choices=(1, 2), words=("1", "2")), phase=10, requires=HF),
        owner("round", phase=40, requires=HF, excludes=QUANTIZED, adds=QUANTIZED),
        owner("export", phase=50, requires=HF, excludes=QUANTIZED, adds=ONNX, removes=HF),
        owner("mix", BITS, EDGES, phase=60, requires=ONNX, excludes=QUANTIZED, adds=QUANTIZED),
    ),
)


def test_the_space_of_a_plugin_holds_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path / "plugin")
    monkeypatch.syspath_prepend(tmp_path / "plugin")
    check_space(FakeTask)


def test_only_what_can_be_put_together_is_asked_for() -> None:
    points = list(SPACE.points())
    plain = [point for point in points if point["engine"] == "plain"]
    assert {tuple(point) for point in plain} == {("engine", "cut", "round"), ("engine", "cut", "cut.count", "round")}
    exported = [point for point in points if point["engine"] == "exported"]
    assert all("round" not in point and "export" not in point for point in exported), "rounding bars the export, and the export is not a choice"
    assert all(("mix.edges" in point) == (point.get("mix.bits") == 4) for point in exported)
    assert len(plain) == 3 * 2
    assert len(exported) == 3 * (1 + 1 + 2)


def test_options_that_need_a_trait_are_asked_for_only_where_it_is_carried() -> None:
    kernels = Tunable(name="kernels", choices=(None, "fast"), words=("", "fast"), requires=QUANTIZED)
    space = Space(engines=(owner("plain", kernels, accepts=HF),), techniques=SPACE.techniques[1:2])
    points = list(space.points())
    assert all(("plain.kernels" in point) == point["round"] for point in points)
    assert len(points) == 1 + 2


def test_options_can_wait_for_what_a_technique_or_another_option_chose() -> None:
    kernels = Tunable(name="kernels", choices=(None, "fast"), words=("", "fast"), when=(("mix.bits", 4),))
    steps = Tunable(name="steps", choices=(None, 8), words=("", "steps8"), when=(("kernels", None),))
    space = Space(engines=(owner("exported", kernels, steps, accepts=ONNX),), techniques=SPACE.techniques)
    points = list(space.points())
    assert all(("exported.kernels" in point) == (point.get("mix.bits") == 4) for point in points)
    assert all(("exported.steps" in point) == (point.get("exported.kernels") != "fast") for point in points)


def test_vllm_is_asked_only_for_what_it_has() -> None:
    space = TextGeneration.space()

    def kernels(scheme: str) -> tuple[Choice, Choice]:
        asked = {"engine": "vllm", "compressed_tensors": True, "compressed_tensors.scheme": scheme, "vllm.kernels": "humming"}
        point = space.complete(asked | {"vllm.max_batched_tokens": 8192})
        return point.get("vllm.kernels"), point.get("vllm.max_batched_tokens")

    assert kernels("W4A16") == ("humming", None), "they err in longer steps"
    assert kernels("W8A8") == (None, 8192), "they multiply by weights alone"
    rounded = space.complete({"engine": "vllm", "torchao_int8_weight_only": True})
    assert "torchao_int8_weight_only" not in rounded, "it would import torchao, which keeps it from being forked"


def test_a_step_that_is_needed_is_taken_unasked() -> None:
    plan = SPACE.plan(SPACE.complete({"engine": "exported", "mix": True, "mix.bits": 4}))
    assert plan.steps == (Step(technique="export"), Step(technique="mix", params={"bits": 4, "edges": None}))
    assert plan.name == "exported-mix-4-bit"


def test_points_are_found_again_and_strangers_are_not() -> None:
    for point in SPACE.points():
        assert SPACE.point_of(SPACE.plan(point).model_copy(update={"name": "any"})) == point
    stranger = SPACE.plan(SPACE.complete({"engine": "exported", "mix": True}))
    assert SPACE.point_of(stranger.model_copy(update={"options": {"more": 1}})) is None
    assert SPACE.point_of(Plan(name="any", engine="unheard of")) is None


@given(st.randoms(use_true_random=False))
def test_a_walk_gives_a_point_that_completes_to_itself(random: Random) -> None:
    point = SPACE.walk(lambda dimension: random.choice(dimension.choices))
    assert SPACE.complete(point) == point
    assert point in list(SPACE.points())


@given(st.randoms(use_true_random=False))
def test_neighbours_are_points_that_differ_in_one_choice_and_what_depends_on_it(random: Random) -> None:
    point = SPACE.walk(lambda dimension: random.choice(dimension.choices))
    found = list(SPACE.neighbours(point))
    known = {dimension.name: dimension for dimension in SPACE.dimensions()}
    assert len(found) == sum(len(known[name].choices) - 1 for name in point)
    assert all(near == SPACE.complete(near) for near in found)
    assert point not in found
    assert any(sum(near.get(name) != value for name, value in point.items()) == 1 for near in found)


def test_unusable_tunables_are_refused() -> None:
    for choices, words in (((), ()), ((1, 2), ("a",)), ((1, 2), ("a", "a"))):
        with pytest.raises(ValueError, match="a word of its own"):
            Tunable(name="bits", choices=choices, words=words)


def test_what_does_not_fit_together_says_why() -> None:
    rules = {owner.name: owner.rule for owner in SPACE.techniques if owner.rule is not None}

    def said(*names: str, accepts: frozenset[str] = ONNX) -> str:
        return objection(Plan(name="any", engine="exported"), [rules[name] for name in names], accepts)

    assert said("export", "mix") == ""
    assert said("round", "export") == "export takes nothing that is quantized"
    assert said("mix") == "mix takes only what is onnx"
    assert said("export", "cut") == "cut must come before what precedes it"
    assert said("cut") == "exported opens only what is onnx"
    assert reaches(list(rules.values()), ORIGINAL, 0, ONNX)
    assert not reaches([rules["mix"]], ORIGINAL, 0, ONNX)


def test_a_pool_holds_each_point_once_in_a_seeded_order() -> None:
    one, other = pool(SPACE, 0), pool(SPACE, 0)
    assert one.points == other.points != pool(SPACE, 1).points
    assert sorted(map(str, one.points)) == sorted(map(str, SPACE.points()))
    assert len({tuple(row) for row in one.codes.tolist()}) == len(one.points)
    assert (encoded(SPACE, one.points) == one.codes).all()


def test_a_large_space_is_sampled() -> None:
    tunables = tuple(Tunable(name=f"t{place}", choices=(0, 1, 2, 3), words=("a", "b", "c", "d")) for place in range(9))
    large = Space(engines=(owner("plain", *tunables, accepts=HF),), techniques=())
    assert 10_000 < len(pool(large, 0).points) <= 20_000


def test_what_is_known_of_a_large_space_is_in_its_pool_with_what_is_around_it() -> None:
    tunables = tuple(Tunable(name=f"t{place}", choices=(0, 1, 2, 3), words=("a", "b", "c", "d")) for place in range(20))
    large = Space(engines=(owner("plain", *tunables, accepts=HF),), techniques=())
    known = [large.complete({}), large.complete({"plain.t3": 2})]
    found = pool(large, 0, known=known).points
    assert [point for point in known if point not in found] == []
    assert [near for point in known for near in large.neighbours(point) if near not in found] == []
    assert known[0] not in pool(large, 0).points, "it would not be by chance"
    assert known[1] not in pool(large, 0, known=known, wanted=lambda point: point["plain.t3"] == 0).points


def test_dimensions_are_all_that_points_have() -> None:
    known = {dimension.name: dimension for dimension in SPACE.dimensions()}
    asked: list[Dimension] = []
    for point in SPACE.points():
        assert point.keys() <= known.keys()

    def last(dimension: Dimension) -> Choice:
        asked.append(dimension)
        return dimension.choices[-1]

    SPACE.walk(last)
    assert all(known[dimension.name] == dimension for dimension in asked)


def test_an_engine_and_a_technique_of_one_name_would_mix_up_their_choices() -> None:
    with pytest.raises(ValueError, match="plain"):
        Space(engines=(owner("plain", accepts=HF),), techniques=(owner("plain", BITS, phase=1),))


def test_first_candidates_are_points_of_the_space_so_that_no_search_tries_them_again() -> None:
    """But for those with steps of their own, and an engine that is not searched."""
    space = TextGeneration.space()
    apart = {"gguf_as_given", "importance", "llmcompressor", "openvino_awq", "magnitude_prune", "distill"}
    engines = {engine.name for engine in space.engines}
    plans = [plan for plan in TextGeneration.catalogue({}, 600.0) if plan.engine in engines and not apart & {step.technique for step in plan.steps}]
    assert len(plans) > 10
    assert [plan.name for plan in plans if space.point_of(plan) is None] == []


def test_bits_by_family_are_of_use_only_where_a_wanted_engine_takes_them() -> None:
    space = TextGeneration.space()
    assert tells_families(space)
    assert not tells_families(space, lambda plan: plan.engine != "ort_genai")


@pytest.mark.parametrize(
    ("options", "needed"),
    [({}, False), ({"compile": "denoiser", "channels_last": True}, False), ({"attention": "cudnn"}, True), ({"attention": None}, False),
     ({"compile": "denoiser", "graphs": True}, True)],
)  # fmt: skip
def test_what_only_gpus_do_is_not_searched_elsewhere(options: dict[str, Choice], needed: bool) -> None:
    assert needs_gpu(Plan(name="one", engine="diffusers", options=dict(options))) == needed
