"""What the technique gguf refuses everywhere, and what it writes where llama.cpp's environment is built."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from genopt.engines.base import GenerationRequest
from genopt.engines.llamacpp import LlamaCppEngine
from genopt.environments import place
from genopt.errors import InfeasibleError, SpecError, StageError
from genopt.process import SessionProcess, run_stage
from genopt.techniques.base import TransformContext
from genopt.techniques.gguf import Gguf
from genopt.techniques.gguf_shape import read_shape
from genopt.techniques.importance import Importance, mean_squares
from genopt.testing.contracts import runs_here
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama
from genopt.testing.tiny_tokenizer import write_tiny_tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
    "vocab_size": 300, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "number_format", "said"),
    [
        ({"architectures": ["UnheardOfForCausalLM"]}, "native", "UnheardOfForCausalLM.*another engine"),
        ({"architectures": None}, "native", "without a named architecture"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "native", "'yarn'"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 128}, "native", "window of 128 tokens"),
        ({"num_attention_heads": 3, "head_dim": 24}, "Q8_0", "the attention's output = 72"),
        ({"hidden_size": 72}, "Q8_0", "hidden_size = 72.*native"),
        ({"intermediate_size": 100}, "Q4_K_M", "intermediate_size = 100"),
    ],
)
def test_models_that_do_not_fit_are_refused(changed: dict[str, Any], number_format: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    with pytest.raises(InfeasibleError, match=said):
        Gguf.check(tmp_path, {"format": number_format})


def test_a_model_that_fits_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"no config\.json"):
        Gguf.check(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    Gguf.check(tmp_path, {"format": "Q8_0"})
    with pytest.raises(SpecError, match="format"):
        Gguf.check(tmp_path, {"format": "Q3_K"})


def test_stretched_positions_leave_fast_frequencies_alone_and_divide_slow_ones(tmp_path: Path) -> None:
    """With the configuration of Llama 3.1 8B."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    changed = {"hidden_size": 4096, "num_attention_heads": 32, "rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changed}))
    factors = read_shape(tmp_path).rope_factors
    assert len(factors) == 64
    assert factors[:29] == (1.0,) * 29
    assert factors[36:] == (8.0,) * 28
    assert list(factors) == sorted(factors)


def test_a_shape_that_is_not_told_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in CONFIG.items() if name != "num_hidden_layers"}))
    with pytest.raises(InfeasibleError, match="does not tell its num_hidden_layers"):
        Gguf.check(tmp_path, {})


def test_options_are_checked() -> None:
    LlamaCppEngine.check({"threads": 2, "cache_type_k": "q8_0", "flash_attention": True, "mmap": False})
    with pytest.raises(SpecError, match="cache_type_k"):
        LlamaCppEngine.check({"cache_type_k": "q3"})


@pytest.mark.parametrize("spoil", [lambda data: data[:4] + b"\x63\0\0\0" + data[8:], lambda data: data[:2000], lambda data: b"{}"])
def test_files_that_cannot_be_read_are_named(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """An unknown version, a cut file, another format. Without the environment, its absence is what is named."""
    import gguf

    folder = tmp_path / "artifact"
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "model.gguf").write_bytes(spoil((folder / "model.gguf").read_bytes()))
    built = runs_here("engines", "llamacpp")
    said = r"model\.gguf.*version.*convert the model again" if built else "genopt env build llamacpp"
    with pytest.raises(StageError if built else InfeasibleError, match=said):
        SessionProcess("llamacpp", folder, {"threads": 1}, log=tmp_path / "log.txt", timeout_s=60).open()


def test_the_importance_of_an_input_is_the_mean_of_its_squares(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_tiny_llama(tmp_path), dtype=torch.float32)
    texts = [[(7 * place + row) % VOCABULARY for place in range(20 + row)] for row in range(2)]
    found = mean_squares(model, texts, lambda _: None)
    layer = model.model.layers[0]
    with torch.inference_mode():
        inputs = torch.cat([layer.input_layernorm(model.model.embed_tokens(torch.tensor(ids))) for ids in texts])
    torch.testing.assert_close(found["model.layers.0.self_attn.q_proj.weight"], inputs.pow(2).mean(0))
    assert len(found) == 7 * len(model.model.layers) + 1, "all matrices of the layers, and the head"


if runs_here("engines", "llamacpp"):
    SMALL: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
        "num_hidden_layers": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
    }  # fmt: skip
    STRETCHED = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
        "llama with stretched positions": lambda: LlamaConfig(**SMALL, head_dim=16, rope_parameters=STRETCHED),
        "llama with biases": lambda: LlamaConfig(**SMALL, head_dim=16, attention_bias=True, tie_word_embeddings=True),
        "mistral": lambda: MistralConfig(**SMALL, head_dim=16, sliding_window=None),
        "qwen2": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
        "qwen3": lambda: Qwen3Config(**SMALL, head_dim=32),
        "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.15),
    }

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_says_what_transformers_says(family: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32).eval()
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms begin at 0 and 1, where a mistake would not show
                torch.nn.init.normal_(weight, mean=float("norm" in name or "ln_" in name), std=0.2)
        source, artifact, log = tmp_path / "source", tmp_path / "artifact", tmp_path / "log.txt"
        write_tiny_tokenizer(source)
        model.save_pretrained(source)
        artifact.mkdir()
        context = {"original": str(source), "calibration": None, "seed": 0, "threads": 1}
        payload = {"technique": "gguf", "source": str(source), "destination": str(artifact), "params": {"format": "native"}, "context": context}
        Gguf.check(source, {"format": "native"})
        run_stage("transform", payload, log=log, timeout_s=120, threads=1, where="llamacpp")
        ids = [(7 * place) % VOCABULARY for place in range(200)]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
        with SessionProcess("llamacpp", artifact, {"threads": 1}, log=log, timeout_s=60, threads=1) as session:
            found, memory = session.score([ids]).log_probs[0], session.memory()
        groups, size = model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads
        groups, size = vars(model.config).get("num_key_value_heads") or groups, vars(model.config).get("head_dim") or size
        assert memory.kv_bytes_per_token == 2 * 2 * 2 * groups * size, "layers, keys and values, and bytes of each number"
        assert memory.kv_cache_bytes == 256 * memory.kv_bytes_per_token
        np.testing.assert_allclose(found, expected, atol=0.03)

    def write_q8(source: Path, artifact: Path, log: Path) -> Path:
        artifact.mkdir()
        context = {"original": str(source), "calibration": None, "seed": 0, "threads": 1}
        payload = {"technique": "gguf", "source": str(source), "destination": str(artifact), "params": {"format": "Q8_0"}, "context": context}
        run_stage("transform", payload, log=log, timeout_s=120, threads=1, where="llamacpp")
        return artifact

    def followed(
        session: SessionProcess, asked: Mapping[int, GenerationRequest], slots: int, seen: Callable[[int], None] = lambda _: None
    ) -> dict[int, list[int]]:
        """The tokens of requests that join a running batch, each while those before it are under way; `seen` is told how many a step gave."""
        assert session.joinable(slots)
        waiting, streamed, running = deque(asked), dict[int, list[int]](), set[int]()
        while waiting or running:
            if waiting and len(running) < slots and all(len(streamed[key]) >= 2 for key in running):
                key = waiting.popleft()
                streamed[key] = []
                running.add(key)
                session.send({"join": key, "request": asked[key].model_dump(mode="json")})
            message = session.receive(30)
            assert message is not None
            assert "step" in message, message
            seen(len(message["step"]))
            for key, token, _ in message["step"]:
                streamed[key].append(token)
            running.difference_update(key for key, _ in message["ended"])
        return streamed

    def test_requests_join_and_leave_and_company_changes_nothing(tmp_path: Path) -> None:
        """Rows end before those behind them, and the last request is longer than the cache that the others began with."""
        log = tmp_path / "log.txt"
        artifact = write_q8(write_tiny_llama(tmp_path / "source"), tmp_path / "artifact", log)
        asked = {
            key: GenerationRequest(prompt_ids=tuple((key + 31 * place) % VOCABULARY for place in range(length)), max_new_tokens=tokens)
            for key, (length, tokens) in enumerate([(20, 30), (9, 3), (31, 60), (5, 10), (14, 1), (270, 80), (40, 20)])
        }
        with SessionProcess("llamacpp", artifact, {"threads": 1, "lookahead": 4}, log=log, timeout_s=60, threads=1) as session:
            found = followed(session, asked, slots=3)
            assert found == {key: list(session.generate([request])[0].token_ids) for key, request in asked.items()}

    def test_guesses_change_no_greedy_answer(tmp_path: Path) -> None:
        log = tmp_path / "log.txt"
        artifact = write_q8(write_tiny_llama(tmp_path / "source"), tmp_path / "artifact", log)
        prompts = [tuple(np.random.default_rng(seed).integers(0, 8, 20).tolist()) for seed in range(4)]
        asked = [GenerationRequest(prompt_ids=prompt, max_new_tokens=40, top_logprobs=1) for prompt in prompts]
        steps: list[int] = []
        with (
            SessionProcess("llamacpp", artifact, {"threads": 1}, log=log, timeout_s=60, threads=1) as plain,
            SessionProcess("llamacpp", artifact, {"threads": 1, "lookahead": 4}, log=log, timeout_s=60, threads=1) as guessing,
        ):
            for request in asked:
                (expected,), (found,) = plain.generate([request]), guessing.generate([request])
                assert found.token_ids == expected.token_ids
                assert followed(guessing, {0: request}, slots=1, seen=steps.append)[0] == list(expected.token_ids)
            assert max(steps) > 1, "several tokens in one step"
            assert [one.token_ids for one in guessing.generate(asked)] == [one.token_ids for one in plain.generate(asked)]

    def test_what_matters_is_rounded_with_more_care(tmp_path: Path) -> None:
        """A few channels are 20 times as large as the others; rounding that knows of them errs less where it counts."""
        import gguf

        torch.manual_seed(0)
        config = LlamaConfig(**SMALL, head_dim=16)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            model.model.embed_tokens.weight[:, ::16] *= 20
        source, weighed, log = tmp_path / "source", tmp_path / "weighed", tmp_path / "log.txt"
        write_tiny_tokenizer(source)
        model.save_pretrained(source)
        texts = [[(5 * place + 3 * row) % VOCABULARY for place in range(128)] for row in range(8)]
        path = tmp_path / "calibration.parquet"
        pq.write_table(pa.table({"ids": pa.array(texts, pa.list_(pa.int32()))}), path)
        weighed.mkdir()
        known = TransformContext(original=str(source), calibration=str(path), seed=0, threads=1, time_limit_s=60)
        Importance.apply(source, weighed, {}, known, lambda _: None)
        weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()  # its rows are stored as they are
        squares = mean_squares(model, texts, lambda _: None)["model.layers.0.mlp.up_proj.weight"].numpy()
        apart = []
        for number, begun in enumerate((source, weighed)):
            artifact = tmp_path / f"artifact-{number}"
            artifact.mkdir()
            context = {"original": str(source), "calibration": None, "seed": 0, "threads": 1}
            payload = {"technique": "gguf", "source": str(begun), "destination": str(artifact), "params": {"format": "Q4_0"}, "context": context}
            run_stage("transform", payload, log=log, timeout_s=120, threads=1, where="llamacpp")
            assert not list(artifact.glob("*.importance"))
            tensor = next(one for one in gguf.GGUFReader(artifact / "model.gguf").tensors if one.name == "blk.0.ffn_up.weight")
            apart.append(float((squares * (gguf.dequantize(tensor.data, tensor.tensor_type) - weight) ** 2).mean()))
        assert apart[1] < 0.7 * apart[0]

    def test_what_runs_survives_the_loss_of_its_environment_and_says_so_when_it_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a deployment whose replica starts anew after somebody removed the environment."""
        source, artifact, log = write_tiny_llama(tmp_path / "source"), tmp_path / "artifact", tmp_path / "log.txt"
        write_q8(source, artifact, log)
        folder = place.require_built("llamacpp")
        link = tmp_path / "environments" / folder.name
        link.parent.mkdir()
        link.symlink_to(folder)
        monkeypatch.setenv(place.VARIABLE, str(link.parent))
        asked = [GenerationRequest(prompt_ids=(1, 2, 3), max_new_tokens=4)]
        with SessionProcess("llamacpp", artifact, {"threads": 1}, log=log, timeout_s=60, threads=1) as session:
            before = session.generate(asked)[0].token_ids
            link.unlink()
            assert session.generate(asked)[0].token_ids == before
            with pytest.raises(InfeasibleError, match=r"is not built on this machine; build it with: genopt env build llamacpp\.$"):
                SessionProcess("llamacpp", artifact, {"threads": 1}, log=log, timeout_s=60, threads=1).open()
