"""Export to ONNX, its quantization, and the engine that runs both, on a tiny random Llama."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genopt.engines.base import GenerationRequest, TokenLogProbs
from genopt.engines.ort_genai import OrtGenaiEngine, OrtGenaiSession
from genopt.engines.ort_model import OrtDecoder
from genopt.errors import InfeasibleError, SpecError, StageError
from genopt.plan import JsonValue
from genopt.process import SessionProcess
from genopt.techniques.base import TransformContext
from genopt.techniques.onnx_embedding import TABLE
from genopt.techniques.onnx_genai import OnnxGenai
from genopt.techniques.onnx_weight_only import OnnxWeightOnly, WeightOnlyParams, node_bits, uniform
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama

Quantize = Callable[..., Path]


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist())


def context() -> TransformContext:
    return TransformContext(original="", calibration=None, seed=0, threads=2, time_limit_s=100)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def exported(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    OnnxGenai.check(llama, {})
    OnnxGenai.apply(llama, folder, {}, context(), lambda _: None)
    return folder


@pytest.fixture(scope="session")
def quantize(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    done: dict[str, Path] = {}

    def run(**params: JsonValue) -> Path:
        key = json.dumps(params, sort_keys=True)
        if key not in done:
            folder = done[key] = tmp_path_factory.mktemp("quantized")
            OnnxWeightOnly.check(exported, params)
            OnnxWeightOnly.apply(exported, folder, params, context(), lambda _: None)
        return done[key]

    return run


@pytest.fixture(scope="session", params=["fp32", "int8"])
def session(request: pytest.FixtureRequest, exported: Path, quantize: Quantize) -> Iterator[OrtGenaiSession]:
    session = OrtGenaiEngine.open(exported if request.param == "fp32" else quantize(), {"threads": 2})
    yield session
    session.close()


def scores(folder: Path, sequences: Sequence[Sequence[int]]) -> tuple[list[np.ndarray[Any, Any]], list[tuple[int, ...]]]:
    session = OrtGenaiEngine.open(folder, {"threads": 1})
    found = session.score(sequences)
    session.close()
    return [np.array(values) for values in found.log_probs], list(found.top_ids)


@pytest.fixture(scope="session")
def reference(llama: Path) -> tuple[list[tuple[int, ...]], list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Sequences, and their log-probabilities and preferred ids according to PyTorch in float32."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    sequences, values, tops = [prompt(2), prompt(17, 1), prompt(300, 2)], [], []
    for sequence in sequences:
        with torch.inference_mode():
            logits = torch.log_softmax(model(torch.tensor([sequence])).logits[0, :-1], dim=-1)
        values.append(logits[torch.arange(len(sequence) - 1), torch.tensor(sequence[1:])].numpy())
        tops.append(logits.argmax(-1).numpy())
    return sequences, values, tops


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("model.onnx*"))


def nodes(folder: Path) -> dict[str, str]:
    import onnx

    return {node.name: node.op_type for node in onnx.load_model(str(folder / "model.onnx"), load_external_data=False).graph.node}


def test_export_agrees_with_the_original(exported: Path, reference: Any) -> None:
    sequences, values, tops = reference
    found, found_tops = scores(exported, sequences)
    for ours, theirs, our_tops, their_tops in zip(found, values, found_tops, tops, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
        assert np.mean(np.array(our_tops) == their_tops) > 0.99


def test_export_leaves_only_the_model_and_its_texts(exported: Path) -> None:
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= {path.name for path in exported.iterdir()}
    assert not [path for path in exported.iterdir() if path.is_dir() or path.name.startswith(".")]


def test_export_names_an_architecture_that_it_does_not_know(llama: Path, tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    shutil.copytree(llama, source)
    destination.mkdir()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["UnheardOfForCausalLM"]}))
    with pytest.raises(InfeasibleError, match="UnheardOfForCausalLM"):
        OnnxGenai.apply(source, destination, {}, context(), lambda _: None)


@pytest.mark.parametrize(("params", "tolerance"), [({}, 0.1), ({"symmetric": True}, 0.1), ({**uniform(4), "block_size": 16}, 1.0)])
def test_quantized_is_smaller_and_close(exported: Path, quantize: Quantize, reference: Any, params: dict[str, JsonValue], tolerance: float) -> None:
    folder = quantize(**params)
    sequences, values, _ = reference
    found, _ = scores(folder, sequences)
    assert size(folder) < 0.75 * size(exported)
    assert np.mean(np.abs(np.concatenate(found) - np.concatenate(values))) < tolerance
    assert "MatMul" not in nodes(folder).values()


def test_fewer_bits_and_larger_blocks_are_smaller(quantize: Quantize) -> None:
    assert size(quantize(**uniform(4))) < size(quantize(head=4)) < size(quantize())
    assert size(quantize(block_size=64)) < size(quantize(block_size=16))


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"head": 32}, {"/lm_head/MatMul"}),
        (
            {"down_proj": 32, "o_proj": 32},
            {f"/model/layers.{layer}/{part}/MatMul" for layer in range(3) for part in ("mlp/down_proj", "attn/o_proj")},
        ),
        ({"edge_layers": 32}, {f"/model/layers.{layer}/{part}/MatMul" for layer in (0, 2)
                           for part in ("mlp/down_proj", "mlp/up_proj", "mlp/gate_proj", "attn/qkv_proj", "attn/o_proj")}),
    ],
)  # fmt: skip
def test_kept_families_stay_at_full_precision(quantize: Quantize, params: dict[str, JsonValue], kept: set[str]) -> None:
    assert {name for name, kind in nodes(quantize(**params)).items() if kind == "MatMul"} == kept


def test_separate_attention_projections_belong_to_one_family() -> None:
    names = [f"/model/layers.0/attn/{part}_proj/MatMul" for part in "qkvo"]
    assert list(node_bits(names, WeightOnlyParams(qkv_proj=4)).values()) == [4, 4, 4, 8]


def test_each_family_has_its_own_bits(quantize: Quantize) -> None:
    folder = quantize(head=4, gate_up_proj=4, edge_layers=8)
    low = {f"/model/layers.1/mlp/{part}_proj/MatMul" for part in ("gate", "up")} | {"/lm_head/MatMul"}
    assert {name.removesuffix("_Q4") for name, kind in nodes(folder).items() if kind == "MatMulNBits" and name.endswith("_Q4")} == low
    assert set(nodes(folder).values()) >= {"MatMulNBits"}
    assert "MatMul" not in nodes(folder).values()


def test_keeping_everything_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="Nothing is left"):
        OnnxWeightOnly.apply(exported, tmp_path, uniform(32), context(), lambda _: None)


def test_embedding_is_stored_in_16_bits_without_loss(exported: Path, quantize: Quantize) -> None:
    import onnx
    from onnx import numpy_helper

    def tensors(folder: Path) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in onnx.load_model(str(folder / "model.onnx")).graph.initializer}

    before = numpy_helper.to_array(tensors(exported)["lm_head.MatMul.weight"])
    table = tensors(quantize())[TABLE]
    assert table.data_type == onnx.TensorProto.BFLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(table).astype(np.float32), before.T)
    assert TABLE not in tensors(quantize(head=32))  # the head reads the same tensor


@pytest.mark.parametrize(
    ("technique", "params", "said"),
    [
        (OnnxGenai, {"precision": "fp8"}, "precision"),
        (OnnxGenai, {"speed": 1}, "speed"),
        (OnnxWeightOnly, {"head": 3}, "head"),
        (OnnxWeightOnly, {"block_size": 48}, "block_size"),
        (OnnxWeightOnly, {"edge_layers": 4}, "8 or 32"),
        (OnnxWeightOnly, {"block": 32}, "known settings: head, qkv_proj"),
    ],
)
def test_unknown_parameters_are_refused(exported: Path, technique: Any, params: dict[str, JsonValue], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        technique.check(exported, params)


def test_unknown_options_are_refused() -> None:
    OrtGenaiEngine.check({"threads": 2, "spin": False, "max_context": 64})
    with pytest.raises(SpecError, match="known settings: threads"):
        OrtGenaiEngine.check({"thread": 2})
    with pytest.raises(SpecError, match="threads"):
        OrtGenaiEngine.check({"threads": 0})


def test_folder_of_another_format_is_refused(llama: Path) -> None:
    with pytest.raises(StageError, match="onnx_genai"):
        OrtGenaiEngine.open(llama, {})


def test_greedy_continuation_is_the_original_s(llama: Path, exported: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    ids = list(prompt(9, 5))
    for _ in range(20):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    session = OrtGenaiEngine.open(exported, {"threads": 1})
    (generation,) = session.generate([GenerationRequest(prompt_ids=tuple(ids[:9]), max_new_tokens=20)])
    session.close()
    assert list(generation.token_ids) == ids[9:]
    assert generation.finish_reason == "length"


def test_guesses_change_no_greedy_answer(exported: Path) -> None:
    prompts = [tuple(np.random.default_rng(seed).integers(0, 8, 20).tolist()) for seed in range(4)]
    asked = [GenerationRequest(prompt_ids=prompt, max_new_tokens=40, top_logprobs=1) for prompt in prompts]
    plain, guessing = (OrtGenaiEngine.open(exported, {"threads": 1, "lookahead": lookahead}) for lookahead in (0, 4))
    steps = []
    decoded = OrtDecoder.check

    def counted(self: OrtDecoder, tokens: Sequence[int]) -> Any:
        steps.append(len(tokens))
        return decoded(self, tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtDecoder, "check", counted)
        for request in asked:
            (expected,), (found,) = plain.generate([request]), guessing.generate([request])
            assert found.token_ids == expected.token_ids
    assert max(steps) > 1
    together = guessing.generate(asked)
    assert [one.token_ids for one in together] == [one.token_ids for one in plain.generate(asked)]


def test_batch_of_unequal_requests_equals_them_one_by_one(session: OrtGenaiSession) -> None:
    requests = [
        GenerationRequest(prompt_ids=prompt(5, 1), max_new_tokens=12),
        GenerationRequest(prompt_ids=prompt(200, 2), max_new_tokens=3),  # more than one chunk
        GenerationRequest(prompt_ids=prompt(1, 3), max_new_tokens=30, temperature=0.8, top_p=0.9, seed=7),
        GenerationRequest(prompt_ids=prompt(40, 4), max_new_tokens=1),
        GenerationRequest(prompt_ids=prompt(33, 5), max_new_tokens=20, temperature=1.3, seed=8),
    ]
    together = session.generate(requests)
    for request, generation in zip(requests, together, strict=True):
        (alone,) = session.generate([request])
        assert generation.token_ids == alone.token_ids
        assert len(generation.token_ids) == len(generation.timestamps_ns) == request.max_new_tokens
        assert list(generation.timestamps_ns) == sorted(generation.timestamps_ns)
        assert generation.started_ns <= generation.timestamps_ns[0]


def test_stop_tokens_end_only_their_own_row(session: OrtGenaiSession) -> None:
    free = GenerationRequest(prompt_ids=prompt(12, 6), max_new_tokens=16)
    other = GenerationRequest(prompt_ids=prompt(7, 7), max_new_tokens=16)
    tokens = session.generate([free])[0].token_ids
    stop = tokens[6]
    stopped, unaffected = session.generate([free.model_copy(update={"stop_token_ids": (stop, 999)}), other])
    assert stopped.token_ids == tokens[: tokens.index(stop)]
    assert stopped.finish_reason == "stop"
    assert unaffected == session.generate([other])[0].model_copy(
        update={"timestamps_ns": unaffected.timestamps_ns, "started_ns": unaffected.started_ns}
    )


def test_first_token_may_be_a_stop_token(session: OrtGenaiSession) -> None:
    request = GenerationRequest(prompt_ids=prompt(12, 6), max_new_tokens=4)
    first = session.generate([request])[0].token_ids[0]
    (generation,) = session.generate([request.model_copy(update={"stop_token_ids": (first,)})])
    assert (generation.token_ids, generation.finish_reason) == ((), "stop")


def test_the_model_s_own_end_token_does_not_stop(exported: Path, tmp_path: Path) -> None:
    request = GenerationRequest(prompt_ids=prompt(12, 6), max_new_tokens=8)
    folder = tmp_path / "other-end"
    shutil.copytree(exported, folder)
    session = OrtGenaiEngine.open(exported, {})
    tokens = session.generate([request])[0].token_ids
    session.close()
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"] |= {"eos_token_id": tokens[2], "pad_token_id": request.prompt_ids[3]}
    (folder / "genai_config.json").write_text(json.dumps(config))
    session = OrtGenaiEngine.open(folder, {})
    assert session.generate([request])[0].token_ids == tokens
    session.close()


def test_tokens_are_streamed_and_a_row_can_be_cancelled(session: OrtGenaiSession) -> None:
    requests = [GenerationRequest(prompt_ids=prompt(6 + index, index), max_new_tokens=9) for index in range(3)]
    expected = [session.generate([request])[0].token_ids for request in requests]
    streamed: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def on_token(index: int, token: int, _log_probs: TokenLogProbs | None) -> bool:
        streamed[index].append(token)
        return not (index == 1 and len(streamed[1]) == 4)

    generations = session.generate(requests, on_token)
    assert [list(generation.token_ids) for generation in generations] == list(streamed.values())
    assert [generation.finish_reason for generation in generations] == ["length", "cancelled", "length"]
    assert [generations[0].token_ids, generations[1].token_ids, generations[2].token_ids] == [expected[0], expected[1][:4], expected[2]]


def test_seeds_repeat(session: OrtGenaiSession) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        return session.generate([GenerationRequest(prompt_ids=prompt(8), max_new_tokens=24, temperature=1.0, seed=seed)])[0].token_ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_scores_of_a_batch_equal_single_ones(session: OrtGenaiSession) -> None:
    sequences = [prompt(2, 1), prompt(131, 2), prompt(30, 3)]
    together = session.score(sequences)
    assert [len(values) for values in together.log_probs] == [1, 130, 29]
    for index, sequence in enumerate(sequences):
        alone = session.score([sequence])
        assert (alone.log_probs[0], alone.top_ids[0]) == (together.log_probs[index], together.top_ids[index])


def test_context_and_vocabulary_are_guarded(exported: Path) -> None:
    session = OrtGenaiEngine.open(exported, {"max_context": 20, "threads": 1})
    assert len(session.generate([GenerationRequest(prompt_ids=prompt(10), max_new_tokens=10)])[0].token_ids) == 10
    with pytest.raises(SpecError, match="context of 20"):
        session.generate([GenerationRequest(prompt_ids=prompt(10), max_new_tokens=11)])
    with pytest.raises(SpecError, match="context of 20"):
        session.score([prompt(22)])
    with pytest.raises(SpecError, match="between 0 and 299"):
        session.generate([GenerationRequest(prompt_ids=(VOCABULARY,), max_new_tokens=1)])
    session.close()


def test_memory_is_reported(session: OrtGenaiSession) -> None:
    memory = session.memory()
    assert 0 < memory.rss_bytes <= memory.peak_rss_bytes


def test_peak_memory_is_the_session_s_and_not_its_parent_s(exported: Path, tmp_path: Path) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    with SessionProcess("ort_genai", exported, {"threads": 1}, log=tmp_path / "session.log", timeout_s=60) as opened:
        assert opened.memory().peak_rss_bytes < ballast.nbytes


def test_opening_imports_no_torch(exported: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from genopt.engines.ort_genai import OrtGenaiEngine; assert 'onnxruntime' not in sys.modules;"
        "session = OrtGenaiEngine.open(Path(sys.argv[1]), {'threads': 1}); session.score([[1, 2, 3]]);"
        "print([name for name in ('torch', 'transformers', 'onnxruntime_genai', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
