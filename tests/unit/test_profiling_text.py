"""The profile of a language model: families by structure, shares that sum to one, and a decision that follows from the numbers."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genopt.errors import DataError, ModelError
from genopt.measure.exclusivity import Unwatched
from genopt.models.kv_cache import CacheSize
from genopt.profiling import families, roofline, wording
from genopt.profiling.ceiling_cache import CeilingCache
from genopt.profiling.families import FRAMEWORK, Layout
from genopt.profiling.generation import Generation
from genopt.profiling.roofline import Ceilings, Work
from genopt.profiling.text import TextProfile, profile_text
from genopt.report.model import Profile as ReportedProfile
from genopt.search.footprint import ATTENTION, HEAD, MLP, NORMALISATION, OTHER, PROJECTIONS
from genopt.tasks import text_data
from genopt.testing.tiny_models import write_tiny_llama
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

SIZES = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CEILINGS = Ceilings(read_gb_s=10.0, matmul_gflop_s=100.0, formats={})
SECONDS = st.floats(1e-7, 1e3)
AMOUNTS = st.floats(0.0, 1e15)
WORKS = st.builds(Work, bytes=AMOUNTS, operations=AMOUNTS)


def llama(**sizes: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **sizes}))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=256, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(config)


def profiled(model: Any, folder: Path, **changes: Any) -> tuple[TextProfile, list[str]]:
    model.save_pretrained(folder / "model")
    messages: list[str] = []
    asked: dict[str, Any] = {"threads": 1, "prompt_ids": range(3, 19), "decode_steps": 4, "time_limit_s": 20.0, **changes}
    cache = CeilingCache(folder / "ceilings", read=lambda _: 10.0, watch=Unwatched())  # as on a machine that is quiet and stays as it is
    return profile_text(folder / "model", progress=messages.append, trace_folder=folder / "traces", cache=cache, **asked), messages


@pytest.fixture(scope="session", autouse=True)
def _quick_ceilings() -> Any:
    """Ceilings are measured on the CPU with small buffers and matrices; how fast this machine is does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("genopt.profiling.ceilings.BUFFER_BYTES", 2**22)
        patch.setattr("genopt.profiling.ceilings.MOST_BUFFER_BYTES", 2**22)
        patch.setattr("genopt.profiling.ceilings.SIZES", {"cpu": (64, 128), "cuda": (64, 128)})
        yield


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextProfile, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return profiled(llama() if request.param == "llama" else gpt2(), folder)[0], folder


def test_shares_sum_to_one_and_come_in_order(found: tuple[TextProfile, Path]) -> None:
    shares = [part.share for part in found[0].bottlenecks]
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)
    assert sum(found[0].prefill_shares.values()) == pytest.approx(1.0)


def test_every_family_of_a_transformer_is_seen(found: tuple[TextProfile, Path]) -> None:
    assert set(found[0].prefill_shares) == {PROJECTIONS, ATTENTION, MLP, NORMALISATION, HEAD, FRAMEWORK}
    names = {part.name for part in found[0].bottlenecks}
    assert names <= {PROJECTIONS, ATTENTION, MLP, NORMALISATION, HEAD, FRAMEWORK, wording.REST}


def test_a_tiny_model_is_bound_by_overhead(found: tuple[TextProfile, Path]) -> None:
    profile = found[0]
    assert {part.bound for part in profile.bottlenecks if part.share > 0.2} == {"overhead"}
    assert profile.family_order == ("engine", "compile", "quantization", "pruning")
    assert "overhead dominates" in profile.advice


def test_every_number_is_finite_and_positive(found: tuple[TextProfile, Path]) -> None:
    profile = found[0]
    content = profile.model_dump(exclude={"bottlenecks", "prefill_shares", "ceilings", "ceilings_age_s"})
    numbers = [value for value in content.values() if isinstance(value, (int, float))]
    numbers += [*profile.ceilings.values(), *profile.prefill_shares.values()]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    formats = {"matmul_bf16_gflop_s", "matmul_fp16_gflop_s", "matmul_fp32_gflop_s", "matmul_int8_gop_s"}
    assert {"read_gb_s", "copy_gb_s", "launch_us", "matmul_gflop_s"} | formats == profile.ceilings.keys()


def test_the_traces_open_and_name_the_families(found: tuple[TextProfile, Path]) -> None:
    assert found[0].traces.keys() == {"prefill", "decode step"}
    for path in map(Path, found[0].traces.values()):
        assert path.parent == found[1] / "traces"
        assert path.stat().st_size < 5e6
        with gzip.open(path) as stream:
            events = json.load(stream)["traceEvents"]
        assert {families.PREFIX + family for family in (PROJECTIONS, ATTENTION, MLP)} <= {event.get("name") for event in events}


def test_the_report_takes_the_profile(found: tuple[TextProfile, Path]) -> None:
    content = found[0].model_dump(mode="json")
    known = {name: content[name] for name in ReportedProfile.model_fields if name in content}
    reported = ReportedProfile.model_validate(known)
    assert reported.phases == found[0].phases
    assert reported.graph_breaks == found[0].graph_breaks


def test_a_long_prompt_is_cut_to_the_context(tmp_path: Path) -> None:
    profile, messages = profiled(llama(), tmp_path, prompt_ids=range(3, 203), decode_steps=2, time_limit_s=0.1)
    assert profile.prompt_tokens + profile.decode_steps < SIZES["max_position_embeddings"]
    assert messages[:2] == ["loading the model on cpu", "timing prefill and decode"]


def test_a_folder_without_a_model_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        profile_text(
            tmp_path, threads=1, prompt_ids=[1], decode_steps=2, time_limit_s=1, progress=print, trace_folder=tmp_path, cache=CeilingCache(tmp_path)
        )  # fmt: skip


def test_a_prompt_without_tokens_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no tokens"):
        profile_text(
            tmp_path, threads=1, prompt_ids=[], decode_steps=2, time_limit_s=1, progress=print, trace_folder=tmp_path, cache=CeilingCache(tmp_path)
        )  # fmt: skip


def test_both_phases_are_set_against_the_limits(found: tuple[TextProfile, Path]) -> None:
    prefill, decode = found[0].phases
    assert (prefill.name, decode.name) == ("prefill", "decode step")
    assert (prefill.ms, prefill.mfu, decode.ms, decode.mbu) == (found[0].prefill_ms, found[0].mfu, found[0].decode_ms, found[0].mbu)
    assert prefill.operations > 10 * decode.operations
    for phase in (prefill, decode):
        assert sum(phase.causes_ms.values()) == pytest.approx(phase.ms)  # these models have no tokenizer
        assert phase.limited_by == next(iter(phase.causes_ms))
        assert sum(family.byte_share for family in phase.families) == pytest.approx(1.0)
        assert sum(family.time_share for family in phase.families) == pytest.approx(1.0)
        assert sum(family.bytes for family in phase.families) == pytest.approx(phase.bytes)
        assert all(part in phase.detail for part in (phase.name, "GB/s", "GFLOP/s", phase.limited_by))


def test_the_top_operators_are_those_with_the_most_time_of_their_own(found: tuple[TextProfile, Path]) -> None:
    for phase in found[0].phases:
        names, times = [item.name for item in phase.operators], [item.ms for item in phase.operators]
        assert 5 < len(names) == len(set(names)) <= 10
        assert {"aten::mm", "aten::addmm"} & set(names)
        assert times == sorted(times, reverse=True)
        assert sum(times) < phase.ms
        assert all(item.share == pytest.approx(item.ms / phase.ms) for item in phase.operators)


def test_the_second_profile_takes_the_ceilings_from_the_first(found: tuple[TextProfile, Path]) -> None:
    again, _ = profiled(llama(), found[1], decode_steps=2, time_limit_s=0.1)
    assert found[0].ceilings_origin.startswith("measured now")
    assert again.ceilings_age_s > 0
    assert again.ceilings_origin.endswith("on this kind of hardware")
    assert again.graph_breaks.count is None
    assert "give a larger --budget" in again.graph_breaks.note


def test_a_tokenizer_is_timed_where_there_is_one(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path / "model", context=64)
    profile, _ = profiled(llama(vocab_size=300), tmp_path, decode_steps=2, time_limit_s=0.1)
    assert profile.tokenizer_ms.keys() == {"prompt", "token"}
    assert profile.phases[0].causes_ms["tokenizer"] == profile.tokenizer_ms["prompt"] > 0
    assert sum(profile.phases[0].causes_ms.values()) == pytest.approx(profile.prefill_ms + profile.tokenizer_ms["prompt"])


def test_the_stage_profiles_the_first_prompt_that_was_prepared(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model", layers=1)
    payload = {
        "model": str(model), "eval_data": None, "calib_data": None, "seed": 0, "prompts": None, "prompt_tokens": 24, "output_tokens": 8,
        "max_context": 128, "destination": str(tmp_path / "data"),
    }  # fmt: skip
    prepared = text_data.prepare(payload, 60.0)
    asked = {"threads": 1, "concurrency": [1, 4], "trace_folder": str(tmp_path / "traces"), "ceilings": str(tmp_path / "ceilings")}
    content = text_data.profile({"model": str(model), "data": prepared["data"], **asked}, 0.1)
    assert content["prompt_tokens"] == 24
    assert content["dtype"] == "bfloat16"
    assert content["tokenizer_ms"].keys() == {"prompt", "token"}
    assert len(list((tmp_path / "ceilings").iterdir())) == 1
    assert TextProfile.model_validate(json.loads(json.dumps(content)))


def test_a_profile_refuses_numbers_that_are_not_finite(found: tuple[TextProfile, Path]) -> None:
    with pytest.raises(ValidationError, match="finite"):
        TextProfile.model_validate({**found[0].model_dump(), "mbu": math.nan})


def test_a_tied_head_reads_the_whole_table_and_the_embedding_one_row() -> None:
    work = Layout(llama()).work(tokens=1, state_bytes=0.0, attention_operations=0.0)
    assert work[HEAD].bytes == 4 * 32 * (256 + 1)
    assert work[HEAD].operations == 2 * 32 * 256
    assert work[MLP].bytes == 4 * 2 * 3 * 32 * 64
    assert work[PROJECTIONS].bytes == 4 * 2 * (2 * 32 * 32 + 2 * 32 * 16)


def test_a_prompt_reads_weights_once_and_computes_for_each_token() -> None:
    layout = Layout(llama())
    one, many = (layout.work(tokens=tokens, state_bytes=0.0, attention_operations=0.0) for tokens in (1, 10))
    assert many[MLP].bytes == one[MLP].bytes
    assert many[MLP].operations == 10 * one[MLP].operations
    assert many[HEAD].operations == one[HEAD].operations
    assert many[HEAD].bytes - one[HEAD].bytes == 9 * 4 * 32  # a row of the embedding for every token


def test_gpt2_projections_are_found_by_their_structure() -> None:
    work = Layout(gpt2()).work(tokens=1, state_bytes=0.0, attention_operations=0.0)
    assert work[PROJECTIONS].operations == 2 * 2 * (32 * 96 + 32 * 32)


@pytest.mark.parametrize("architecture", ["Qwen3Moe", "Qwen2Moe", "Olmoe", "Mixtral", "GraniteMoe", "Phimoe", "Glm4Moe"])
def test_a_model_of_experts_has_the_families_of_others(architecture: str) -> None:
    experts = {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2}
    dense = {"shared_expert_intermediate_size": 64, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    config = getattr(transformers, f"{architecture}Config")(**{**SIZES, **experts, **dense, "head_dim": 8})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    layout = Layout(model)
    of = {id(module): family for module, family in layout.marks}
    for layer in model.model.layers:
        assert of[id(layer.self_attn)] == ATTENTION
        assert of[id(layer.self_attn.q_proj)] == of[id(layer.self_attn.o_proj)] == PROJECTIONS
        assert of[id(layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe)] == MLP
        assert of[id(layer.input_layernorm)] == NORMALISATION
    assert of[id(model.lm_head)] == of[id(model.model.embed_tokens)] == HEAD
    work = layout.work(tokens=1, state_bytes=0.0, attention_operations=0.0)
    attention = sum(one.weight.numel() for layer in model.model.layers for name, one in layer.self_attn.named_children() if name.endswith("_proj"))
    assert work[PROJECTIONS].operations == 2 * attention
    assert OTHER not in work


def test_only_the_active_experts_are_read() -> None:
    sizes = {**SIZES, "num_local_experts": 8}
    per_token = [
        Layout(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, num_experts_per_tok=active)))
        .work(tokens=1, state_bytes=0.0, attention_operations=0.0)[MLP].operations for active in (2, 4)
    ]  # fmt: skip
    router = 2 * 2 * 8 * 32
    assert per_token[1] - router == 2 * (per_token[0] - router)


def test_many_tokens_read_every_expert_once() -> None:
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=8, num_experts_per_tok=2))
    few, many = (Layout(model).work(tokens=tokens, state_bytes=0.0, attention_operations=0.0)[MLP].bytes for tokens in (2, 500))
    experts = 4 * 2 * 8 * 3 * 32 * 64
    assert few < experts < many == pytest.approx(experts + 4 * 2 * 8 * 32)
    part = Layout(model).parts(bits=32.0, attention_operations=0.0)[MLP]
    assert [part.bytes_of(streams) for streams in (2, 500)] == pytest.approx([few, many]), "a token each of many streams is like many of one"


def test_streams_share_the_experts_that_they_choose() -> None:
    """Qwen3-30B-A3B at a context of 512 on 3 TB/s: one stream reads its 8 of 128 experts, many streams nearly all of them."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=151_936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    cache = CacheSize(layers=((512, 2 * 4 * 128 * 2.0),) * 48, state_bytes=0, rows=1)
    footprint = Generation(model, torch.device("meta"), [1], 1).footprint(cache, 512)
    found = [1e3 * footprint.limit_s(3000.0, 1e9, streams) for streams in (1, 8, 128)]
    assert found == pytest.approx([2.0, 8.7, 22.3], abs=0.06)
    assert footprint.parts[MLP].active == 8 / 128


def test_layers_without_a_known_name_are_other_layers() -> None:
    config = transformers.MambaConfig(vocab_size=256, hidden_size=32, num_hidden_layers=2, state_size=8)
    marked = [family for _, family in Layout(transformers.MambaForCausalLM(config)).marks]
    assert marked.count(OTHER) == 2


def test_attention_operations_are_those_of_a_causal_mask() -> None:
    config = transformers.LlamaConfig(**SIZES)
    token_by_token = sum(families.attention_operations(config, tokens=1, context=context) for context in range(5))
    assert families.attention_operations(config, tokens=5, context=0) == token_by_token


def test_attention_with_a_window_sees_no_more_than_it() -> None:
    config = transformers.MistralConfig(**SIZES, sliding_window=4)
    each = [families.attention_operations(config, tokens=1, context=context) for context in range(8)]
    assert each[3:] == [each[3]] * 5
    assert families.attention_operations(config, tokens=8, context=0) == sum(each)


def test_only_layers_that_attend_count_as_attention() -> None:
    config = transformers.Qwen2Config(**SIZES)
    every = families.attention_operations(config, tokens=1, context=8)
    config.layer_types = ["linear_attention", "full_attention"]
    assert families.attention_operations(config, tokens=1, context=8) == every / 2


@given(seconds=SECONDS, work=WORKS)
def test_the_bound_is_what_explains_at_least_a_third_of_the_time(seconds: float, work: Work) -> None:
    explained = roofline.limit_s(work, CEILINGS) / seconds
    bound = roofline.bound(seconds, work, CEILINGS)
    assert (bound == "overhead") == (explained < 1 / 3) or explained == pytest.approx(1 / 3)
    if bound != "overhead":
        memory, compute = roofline.memory_s(work, CEILINGS), roofline.compute_s(work, CEILINGS)
        assert {"memory": memory >= compute, "compute": compute > memory}[bound]


@given(seconds=SECONDS, work=WORKS, device=st.sampled_from(["cpu", "cuda"]))
def test_the_order_names_every_family_once_and_the_sentence_agrees(seconds: float, work: Work, device: str) -> None:
    order = roofline.family_order(seconds, work, CEILINGS, device=device)
    assert sorted(order) == ["compile", "engine", "pruning", "quantization"]
    sentence = wording.summary(wording.Step(seconds=seconds, work=work, device=device), CEILINGS)
    assert ("overhead dominates" in sentence) == (order[0] != "quantization")
    assert "nan" not in sentence


@given(seconds=SECONDS, work=WORKS, name=st.sampled_from([PROJECTIONS, ATTENTION, MLP, NORMALISATION, HEAD, OTHER, FRAMEWORK, wording.REST]))
def test_every_bottleneck_has_words(seconds: float, work: Work, name: str) -> None:
    bound = roofline.bound(seconds, work, CEILINGS)
    step = wording.Step(seconds=2 * seconds, work=work, device="cpu")
    assert "ms per token" in wording.detail(name, seconds, work, bound, step, CEILINGS)
    assert "{" not in wording.advice(name, seconds, work, bound, CEILINGS)


@given(seconds=st.dictionaries(st.sampled_from("abcd"), st.floats(1e-6, 1.0), min_size=1), count=st.integers(0, 10_000), true_s=st.floats(1e-6, 1.0))
def test_corrected_times_sum_to_the_true_time_and_none_is_negative(seconds: dict[str, float], count: int, true_s: float) -> None:
    found = roofline.corrected(seconds, dict.fromkeys(seconds, count), true_s)
    assert all(value >= 0 for value in found.values())
    assert sum(found.values()) == pytest.approx(true_s) or sum(found.values()) == 0


def test_the_profilers_cost_is_taken_from_where_the_events_are() -> None:
    found = roofline.corrected({"few": 10e-3, "many": 6e-3}, {"few": 0, "many": 1000}, 12e-3)
    assert found == pytest.approx({"few": 10e-3, "many": 2e-3})


def test_a_disturbance_is_not_blamed_on_the_events() -> None:
    found = roofline.corrected({"few": 100e-3, "many": 60e-3}, {"few": 0, "many": 100}, 16e-3)
    assert found["many"] / found["few"] == pytest.approx(0.6, abs=0.01)


def test_more_bytes_than_time_explains_make_fewer_bits_come_first() -> None:
    bound = Work(bytes=8e9, operations=1e9)
    step = wording.Step(seconds=1.0, work=bound, device="cpu")
    assert roofline.family_order(1.0, bound, CEILINGS, device="cpu")[0] == "quantization"
    assert wording.summary(step, CEILINGS) == (
        "Decoding reaches 80% of the memory bandwidth: reading weights dominates, so fewer bits come first "
        "(half the bytes could decode up to 1.7 times as fast)."
    )


def test_large_amounts_are_written_out() -> None:
    step = wording.Step(seconds=0.0008, work=Work(), device="cuda")
    ceilings = Ceilings(read_gb_s=4066.2, matmul_gflop_s=764714.0, formats={})
    assert wording.detail(MLP, 0.0006, Work(bytes=1.61e9, operations=1.6e9), "memory", step, ceilings) == (
        "0.60 of 0.8 ms per token; 1,610 MB at 2,683 of 4,066 GB/s; its limit is 0.40 ms"
    )
    assert "GFLOP at 666,667 of 764,714 GFLOP/s" in wording.detail(MLP, 0.0006, Work(operations=4e11), "compute", step, ceilings)


def test_arithmetic_that_explains_the_time_makes_eight_bits_and_pruning_come_first() -> None:
    bound = Work(bytes=1e9, operations=90e9)
    assert roofline.bound(1.0, bound, CEILINGS) == "compute"
    assert roofline.family_order(1.0, bound, CEILINGS, device="cuda")[:2] == ("quantization", "pruning")


def test_a_gpu_with_idle_time_gets_compiled_steps_first() -> None:
    assert roofline.family_order(1.0, Work(bytes=1e9), CEILINGS, device="cuda")[0] == "compile"
