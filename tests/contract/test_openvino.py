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
from genopt.plan import JsonValue
from genopt.process import SessionProcess, run_stage
from genopt.techniques.openvino_export import OpenVinoExport
from genopt.testing.contracts import check_engine, runs_here
from genopt.testing.tiny_models import CONTEXT, VOCABULARY, write_tiny_llama


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
    with pytest.raises(InfeasibleError, match="attention=paged"):
        OpenVinoEngine.check({"lookahead": 4})


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    built = runs_here("engines", "openvino")
    said = "export the model with the technique openvino" if built else "genopt env build openvino"
    with pytest.raises(StageError if built else InfeasibleError, match=said):
        SessionProcess("openvino", tmp_path, {}, log=tmp_path / "log.txt", timeout_s=60).open()


if runs_here("engines", "openvino"):

    @pytest.fixture(scope="module")
    def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("openvino")
        source, artifact, log = write_tiny_llama(folder / "llama"), folder / "artifact", folder / "log.txt"
        artifact.mkdir()
        context = {"original": str(source), "calibration": None, "seed": 0, "threads": 2}
        paths = {"source": str(source), "destination": str(artifact)}
        payload = {"technique": "openvino_export", **paths, "params": {"weights": "int8"}, "context": context}
        run_stage("transform", payload, log=log, timeout_s=300, threads=2, where="openvino")
        return artifact

    @pytest.fixture(scope="module", params=["sdpa", "paged"])
    def session(request: pytest.FixtureRequest, artifact: Path) -> Iterator[SessionProcess]:
        options = {"threads": 2, "attention": request.param}
        with SessionProcess("openvino", artifact, options, log=artifact.parent / "log.txt", timeout_s=120, threads=2) as opened:
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
        # Keys of a page share scales of 8 bits, so what joins the page changes a little of what is in it.
        np.testing.assert_allclose(whole[:149], beginning, atol=0.05)

    def test_memory_tells_what_the_cache_has_room_for(session: SessionProcess) -> None:
        session.generate([GenerationRequest(prompt_ids=prompt(20), max_new_tokens=12)])
        memory = session.memory()
        numbers = 3 * 2 * 2 * 16  # layers, keys and values, heads, size of a head
        assert numbers <= memory.kv_bytes_per_token <= 4 * numbers
        assert memory.kv_cache_bytes == 32 * memory.kv_bytes_per_token

    def test_pages_keep_the_engine_contract_with_guesses_too(artifact: Path) -> None:
        for lookahead in (0, 4):
            options: dict[str, JsonValue] = {"threads": 2, "attention": "paged", "lookahead": lookahead}
            check_engine("openvino", artifact, options, vocabulary=VOCABULARY, context=CONTEXT)

    def test_pages_give_what_the_state_gives(artifact: Path) -> None:
        """In full precision, where nothing is rounded differently: scores, and answers with and without guesses."""
        log, text = artifact.parent / "log.txt", prompt(300)
        asked = [GenerationRequest(prompt_ids=prompt(length) * 2, max_new_tokens=40) for length in (5, 40, 1)]
        exact: dict[str, JsonValue] = {"threads": 2, "precision": "f32", "cache_type": "f32", "activation_group": 0}
        found = []
        for options in ({"attention": "sdpa"}, {"attention": "paged"}, {"attention": "paged", "lookahead": 4}):
            with SessionProcess("openvino", artifact, exact | options, log=log, timeout_s=120, threads=2) as opened:
                (scores,) = opened.score([text]).log_probs
                found.append(([opened.generate([one])[0].token_ids for one in asked], scores))
        for answers, scores in found[1:]:
            assert answers == found[0][0]
            np.testing.assert_allclose(scores, found[0][1], atol=1e-3)
