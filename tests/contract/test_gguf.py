"""What the technique gguf refuses, wherever llama.cpp's environment is or is not built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genopt.engines.llamacpp import LlamaCppEngine
from genopt.errors import InfeasibleError, SpecError, StageError
from genopt.process import SessionProcess
from genopt.techniques.gguf import Gguf
from genopt.testing.contracts import runs_here

CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128}


@pytest.mark.parametrize(
    ("changed", "number_format", "said"),
    [
        ({"architectures": ["UnheardOfForCausalLM"]}, "native", "UnheardOfForCausalLM.*another engine"),
        ({"architectures": None}, "native", "without a named architecture"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "native", "'llama3'"),
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
