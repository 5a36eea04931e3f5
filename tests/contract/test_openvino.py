"""What the technique and engine openvino refuse everywhere, and what streams do to each other where their environment is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genopt.engines.base import GenerationRequest
from genopt.engines.openvino import OpenVinoEngine
from genopt.errors import InfeasibleError, SpecError, StageError
from genopt.process import SessionProcess, run_stage
from genopt.techniques.openvino_export import OpenVinoExport
from genopt.testing.contracts import runs_here
from genopt.testing.tiny_models import VOCABULARY, write_tiny_llama


def test_groups_divide_the_widths_or_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"no config\.json"):
        OpenVinoExport.check(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 576, "intermediate_size": 1536}))
    OpenVinoExport.check(tmp_path, {"weights": "int8", "group_size": 128})
    OpenVinoExport.check(tmp_path, {"weights": "int4", "group_size": 64})
    with pytest.raises(InfeasibleError, match=r"128 weights does not divide hidden_size = 576; choose a smaller group_size"):
        OpenVinoExport.check(tmp_path, {"weights": "int4", "group_size": 128})
    with pytest.raises(SpecError, match="weights"):
        OpenVinoExport.check(tmp_path, {"weights": "int2"})


def test_options_are_checked() -> None:
    OpenVinoEngine.check({"threads": 2, "precision": "f32", "cache_type": "u8", "activation_group": 0})
    with pytest.raises(SpecError, match="precision"):
        OpenVinoEngine.check({"precision": "f8"})


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    built = runs_here("engines", "openvino")
    said = "export the model with the technique openvino" if built else "genopt env build openvino"
    with pytest.raises(StageError if built else InfeasibleError, match=said):
        SessionProcess("openvino", tmp_path, {}, log=tmp_path / "log.txt", timeout_s=60).open()


if runs_here("engines", "openvino"):

    @pytest.fixture(scope="module")
    def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionProcess]:
        folder = tmp_path_factory.mktemp("openvino")
        source, artifact, log = write_tiny_llama(folder / "llama"), folder / "artifact", folder / "log.txt"
        artifact.mkdir()
        context = {"original": str(source), "calibration": None, "seed": 0, "threads": 2}
        paths = {"source": str(source), "destination": str(artifact)}
        payload = {"technique": "openvino_export", **paths, "params": {"weights": "int8"}, "context": context}
        run_stage("transform", payload, log=log, timeout_s=300, threads=2, where="openvino")
        with SessionProcess("openvino", artifact, {"threads": 2}, log=log, timeout_s=120, threads=2) as opened:
            yield opened

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(np.random.default_rng(length).integers(0, VOCABULARY, length).tolist())

    def test_a_batch_of_unequal_requests_equals_them_one_by_one(session: SessionProcess) -> None:
        """Prompts shorter and longer than a chunk, rows that end early, and others that go on without them."""
        requests = [GenerationRequest(prompt_ids=prompt(length), max_new_tokens=tokens) for length, tokens in ((5, 12), (40, 3), (1, 30), (300, 20))]
        together = session.generate(requests)
        assert [found.token_ids for found in together] == [session.generate([request])[0].token_ids for request in requests]
        assert [len(found.token_ids) for found in together] == [12, 3, 30, 20]

    def test_a_text_scores_alike_however_long_it_goes_on(session: SessionProcess) -> None:
        text = prompt(300)
        (whole,), (beginning,) = session.score([text]).log_probs, session.score([text[:150]]).log_probs
        np.testing.assert_allclose(whole[:149], beginning, atol=1e-4)

    def test_memory_tells_what_the_cache_has_room_for(session: SessionProcess) -> None:
        session.generate([GenerationRequest(prompt_ids=prompt(20), max_new_tokens=12)])
        memory = session.memory()
        numbers = 3 * 2 * 2 * 16  # layers, keys and values, heads, size of a head
        assert numbers <= memory.kv_bytes_per_token <= 4 * numbers
        assert memory.kv_cache_bytes == 32 * memory.kv_bytes_per_token
