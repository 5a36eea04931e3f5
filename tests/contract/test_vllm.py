"""What vLLM is given and what it makes of it, where one of its environments is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, quant_scheme

from genopt.engines.base import GenerationRequest
from genopt.engines.vllm import VllmCpuEngine, VllmEngine
from genopt.engines.vllm_loop import open_loop
from genopt.engines.vllm_options import VllmOptions
from genopt.errors import DataError, GenoptError, InfeasibleError, OutOfMemoryError, SpecError
from genopt.models import nvml
from genopt.plan import JsonValue
from genopt.process import SessionProcess, run_stage
from genopt.tasks.session_memory import memory_metrics
from genopt.techniques.attach_draft import AttachDraft
from genopt.techniques.base import TransformContext
from genopt.techniques.compressed_tensors import CompressedTensors, named_scheme
from genopt.techniques.llmcompressor import LlmCompressor
from genopt.testing.contracts import runs_here
from genopt.testing.tiny_models import write_tiny_llama

TEXT = [(3 * place) % 256 for place in range(60)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


def rounded(source: Path, destination: Path, scheme: str, group_size: int) -> Path:
    destination.mkdir()
    context = TransformContext(original=str(source), calibration=None, seed=0, threads=2, time_limit_s=60)
    CompressedTensors.apply(source, destination, {"scheme": scheme, "group_size": group_size}, context, lambda _: None)
    return destination


def calibration(folder: Path, *, length: int) -> str:
    path = folder / "calibration.parquet"
    rows = [[(7 * row + 3 * place) % 256 for place in range(length)] for row in range(8)]
    pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int32()))}), path)
    return str(path)


def test_options_fit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    VllmCpuEngine.check({"threads": 2, "max_streams": 8})
    with pytest.raises(InfeasibleError, match="no 8-bit floats on CPUs"):
        VllmCpuEngine.check({"quantization": "fp8"})
    with pytest.raises(InfeasibleError, match="no choice of kernels on CPUs"):
        VllmCpuEngine.check({"kernels": "marlin"})
    with pytest.raises(SpecError, match="precision"):
        VllmCpuEngine.check({"precision": "int8"})
    monkeypatch.setattr(nvml, "capability", lambda: None)
    with pytest.raises(InfeasibleError, match="there is none here; on CPUs use the engine vllm_cpu"):
        VllmEngine.check({})
    monkeypatch.setattr(nvml, "capability", lambda: (8, 0))
    VllmEngine.check({})
    with pytest.raises(InfeasibleError, match=r"compute capability 8\.9"):
        VllmEngine.check({"cache_type": "fp8"})
    monkeypatch.setattr(nvml, "capability", lambda: (9, 0))
    VllmEngine.check({"kernels": "humming"})
    with pytest.raises(InfeasibleError, match="err in steps of more than 512 tokens"):
        VllmEngine.check({"kernels": "humming", "max_batched_tokens": 8192})
    with pytest.raises(InfeasibleError, match="leave kernels out where vLLM itself rounds to fp8"):
        VllmEngine.check({"kernels": "humming", "quantization": "fp8"})


def test_a_method_refuses_formats_that_it_does_not_round_to(llama: Path) -> None:
    with pytest.raises(InfeasibleError, match="smoothquant does not round to W4A16; choose one of W8A8"):
        LlmCompressor.check(llama, {"method": "smoothquant", "scheme": "W4A16"})


def test_calibration_text_without_a_whole_piece_is_refused(llama: Path, tmp_path: Path) -> None:
    context = TransformContext(original=str(llama), calibration=calibration(tmp_path, length=20), seed=0, threads=2, time_limit_s=60)
    with pytest.raises(DataError, match="no sequence of 32 tokens"):
        LlmCompressor.apply(llama, tmp_path / "artifact", {"max_seq_length": 32}, context, lambda _: None)


def test_groups_that_do_not_divide_a_width_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"Groups of 128 weights do not divide the 64 of model\.layers\.0\.self_attn\.q_proj"):
        rounded(llama, tmp_path / "artifact", "W4A16", 128)


def test_groups_share_scales_whatever_the_library_means_by_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_rows(name: str, targets: list[str]) -> QuantizationScheme:  # as until release 0.17
        return QuantizationScheme(targets=targets, weights=QuantizationArgs(num_bits=8, strategy="channel"))

    monkeypatch.setattr(quant_scheme, "preset_name_to_scheme", by_rows)
    weights = named_scheme("W8A16", 64).weights
    assert weights is not None
    assert (weights.strategy, weights.group_size) == ("group", 64)


def test_kernels_for_weights_alone_are_refused_where_activations_are_rounded(llama: Path, tmp_path: Path) -> None:
    folder = rounded(llama, tmp_path / "artifact", "W8A8", 32)
    with pytest.raises(InfeasibleError, match="activations are rounded here too; leave kernels out"):
        open_loop(folder, VllmOptions(kernels="humming"))


def test_the_checkpoint_says_what_it_holds(llama: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = rounded(llama, tmp_path / "artifact", "W8A8", 32)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "int-quantized")
    assert config["config_groups"]["group_0"]["input_activations"]["dynamic"] is True
    with safe_open(folder / "model.safetensors", "pt") as opened:
        assert str(opened.get_tensor("model.layers.0.mlp.up_proj.weight").dtype) == "torch.int8"
        assert opened.get_slice("model.layers.0.mlp.up_proj.weight_scale").get_shape() == [128, 1]
        assert opened.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"


def calibrated(source: Path, folder: Path, method: str, scheme: str) -> Path:
    artifact = folder / "artifact"
    artifact.mkdir()
    payload = {
        "technique": "llmcompressor", "source": str(source), "destination": str(artifact),
        "params": {"method": method, "scheme": scheme, "group_size": 32, "num_calibration_samples": 4, "max_seq_length": 64},
        "context": {"original": str(source), "calibration": calibration(folder, length=64), "seed": 0, "threads": 2},
    }  # fmt: skip
    run_stage("transform", payload, log=folder / "transform.txt", timeout_s=300, threads=2, where="llmcompressor")
    return artifact


if runs_here("techniques", "llmcompressor"):

    @pytest.mark.parametrize(("method", "scheme", "scale"), [("static", "FP8", [1]), ("gptq", "FP8_DYNAMIC", [128, 1])])
    def test_floats_of_8_bits_come_with_the_scales_of_their_scheme(method: str, scheme: str, scale: list[int], llama: Path, tmp_path: Path) -> None:
        from safetensors import safe_open

        folder = calibrated(llama, tmp_path, method, scheme)
        (group,) = json.loads((folder / "config.json").read_text())["quantization_config"]["config_groups"].values()
        assert group["weights"]["actorder"] is None, "vLLM 0.22 refuses one for whole rows"
        with safe_open(folder / "model.safetensors", "pt") as opened:
            prefix = "model.layers.0.mlp.up_proj"
            assert opened.get_slice(f"{prefix}.weight").get_dtype() == "F8_E4M3"
            assert opened.get_slice(f"{prefix}.weight_scale").get_shape() == scale
            names = set(opened.keys())
        assert (f"{prefix}.input_scale" in names) == (scheme == "FP8")


if runs_here("engines", "vllm_cpu"):

    @pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
    def test_a_rounded_model_says_about_what_the_original_says(scheme: str, llama: Path, tmp_path: Path) -> None:
        artifact = rounded(llama, tmp_path / "artifact", scheme, 32)
        with SessionProcess("torch", llama, {"threads": 2}, log=tmp_path / "torch.txt", timeout_s=120) as original:
            (expected,) = original.score([TEXT]).log_probs
        with SessionProcess("vllm_cpu", artifact, {"threads": 2}, log=tmp_path / "vllm.txt", timeout_s=300) as session:
            (found,) = session.score([TEXT]).log_probs
        apart = [abs(one - other) for one, other in zip(found, expected, strict=True)]
        assert sum(apart) / len(apart) < (0.1 if scheme == "W8A8" else 0.5)

    if runs_here("techniques", "llmcompressor"):

        @pytest.mark.parametrize(("method", "scheme"), [("smoothquant", "W8A8"), ("gptq", "W4A16"), ("awq", "W4A16")])
        def test_a_model_rounded_with_calibration_is_one_that_vllm_reads(method: str, scheme: str, llama: Path, tmp_path: Path) -> None:
            artifact = calibrated(llama, tmp_path, method, scheme)
            with SessionProcess("torch", llama, {"threads": 2}, log=tmp_path / "torch.txt", timeout_s=120) as original:
                (expected,) = original.score([TEXT]).log_probs
            with SessionProcess("vllm_cpu", artifact, {"threads": 2}, log=tmp_path / "vllm.txt", timeout_s=300) as session:
                (found,) = session.score([TEXT]).log_probs
            apart = [abs(one - other) for one, other in zip(found, expected, strict=True)]
            assert sum(apart) / len(apart) < (0.1 if scheme == "W8A8" else 0.5)

    def test_why_vllm_did_not_start_is_told(llama: Path, tmp_path: Path) -> None:
        """Before it starts, from this process, and from its own."""
        other = tmp_path / "other"
        shutil.copytree(llama, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "architectures": ["WeaverForCausalLM"], "model_type": "llama"}))
        refusals: list[tuple[Path, dict[str, JsonValue], type[GenoptError], str]] = [
            (llama, {"kernels": "marlin"}, InfeasibleError, "no choice of kernels on CPUs"),
            (llama, {"draft_tokens": 3}, InfeasibleError, "brings no smaller model that could guess"),
            (other, {}, InfeasibleError, "vLLM cannot take this model"),
            (llama, {"cache_gib": 4000}, OutOfMemoryError, "vLLM has too little room for keys and values"),
        ]
        for artifact, options, kind, words in refusals:
            with pytest.raises(kind, match=words), SessionProcess("vllm_cpu", artifact, options, log=tmp_path / "vllm.txt", timeout_s=300):
                pass

    def test_room_that_requests_do_not_fill_is_no_need_of_the_model(llama: Path, tmp_path: Path) -> None:
        request = GenerationRequest(prompt_ids=tuple(TEXT[:12]), max_new_tokens=20)
        peaks = []
        for gib in (1, 2):
            options: dict[str, JsonValue] = {"threads": 2, "graphs": False, "cache_gib": gib}
            with SessionProcess("vllm_cpu", llama, options, log=tmp_path / "vllm.txt", timeout_s=300) as session:
                session.generate([request, request])
                memory = session.memory()
                assert 0.9 * 2**30 * gib < memory.kv_reserved_bytes <= 2**30 * gib
                assert 60 <= memory.kv_cache_bytes / memory.kv_bytes_per_token <= 64
                peaks.append(memory_metrics(session, context=32))
        assert peaks[1]["peak_rss_bytes"].value - peaks[0]["peak_rss_bytes"].value > 0.8 * 2**30
        assert abs(peaks[1]["peak_memory_bytes"].value - peaks[0]["peak_memory_bytes"].value) < 0.1 * 2**30

    def test_a_context_that_does_not_fit_into_memory_is_cut_to_what_does(llama: Path, tmp_path: Path) -> None:
        long = tmp_path / "long"
        shutil.copytree(llama, long)
        config = json.loads((long / "config.json").read_text())
        (long / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2_000_000}))  # 1.5 GB of keys and values
        options: dict[str, JsonValue] = {"threads": 2, "graphs": False, "max_streams": 1}
        with SessionProcess("vllm_cpu", long, options, log=tmp_path / "vllm.txt", timeout_s=300) as session:
            with pytest.raises(SpecError, match=r"2000000 tokens are more than this session's context of 13[0-9]{5};"):
                session.generate([GenerationRequest(prompt_ids=(1,), max_new_tokens=1_999_999)])
            assert len(session.score([TEXT]).log_probs[0]) == len(TEXT) - 1

    def test_a_session_ends_with_the_process_of_its_model(llama: Path, tmp_path: Path) -> None:
        with SessionProcess("vllm_cpu", llama, {"threads": 2, "graphs": False}, log=tmp_path / "vllm.txt", timeout_s=300) as session:
            (model,) = (one for one in psutil.Process().children(recursive=True) if "VLLM" in one.name())
            model.kill()
            with pytest.raises(OutOfMemoryError, match="was killed, most likely for lack of memory"):
                session.generate([GenerationRequest(prompt_ids=tuple(TEXT[:12]), max_new_tokens=490)])

    def test_guessing_ahead_changes_no_greedy_answer_and_no_score(llama: Path, tmp_path: Path) -> None:
        """By what followed the same words before, and by a smaller model."""
        artifact, draft = tmp_path / "artifact", write_tiny_llama(tmp_path / "draft", layers=1)
        artifact.mkdir()
        told = TransformContext(original=str(llama), calibration=None, seed=0, threads=2, time_limit_s=60, given={"0" * 64: str(draft)})
        AttachDraft.apply(llama, artifact, {"given": "0" * 64}, told, lambda _: None)
        request = GenerationRequest(prompt_ids=tuple(TEXT[:12] * 3), max_new_tokens=24)
        found = []
        for guesses in ({}, {"lookahead": 4}, {"draft_tokens": 3}):
            options: dict[str, JsonValue] = {"threads": 2, "precision": "float32", **guesses}
            with SessionProcess("vllm_cpu", artifact, options, log=tmp_path / "vllm.txt", timeout_s=300) as session:
                (answer,) = session.generate([request])
                (scores,) = session.score([TEXT]).log_probs
                found.append((answer.token_ids, answer.finish_reason, [round(score, 3) for score in scores]))
        assert found[0] == found[1] == found[2]
