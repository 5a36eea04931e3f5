"""Graph breaks of a decode step: none, some with their place, or the reason why nobody looked."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from genopt.profiling.graph_breaks import find_graph_breaks

CPU = torch.device("cpu")
BREAKING = """import torch
from torch import nn


class Prints(nn.Module):
    def forward(self, hidden):
        total = hidden.sum()
        torch._dynamo.graph_break()
        return hidden + 0 * total
"""


def llama(layers: int = 2) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **sizes)).eval()


def breaking_layer(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """A module that breaks the graph, in a package of its own."""
    package = folder / "breaking_model" / "layers"
    package.mkdir(parents=True)
    for each in (package, package.parent):
        (each / "__init__.py").touch()
    (package / "prints.py").write_text(BREAKING, encoding="utf-8")
    patch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("breaking_model")]:
        patch.delitem(sys.modules, name)
    return importlib.import_module("breaking_model.layers.prints").Prints()


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


def test_a_step_in_one_graph_has_none() -> None:
    found = find_graph_breaks(llama(), CPU, left_s=600.0)
    assert (found.count, found.graphs, found.breaks) == (0, 1, ())
    assert found.note.startswith("one step on a static cache, traced in ")


def test_a_break_has_its_reason_and_its_place_and_equal_layers_are_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(layers=4)
    model.model.layers[1].mlp = breaking_layer(tmp_path, monkeypatch)
    found = find_graph_breaks(model, CPU, left_s=600.0)
    assert found.count == 1
    assert found.graphs is not None
    assert found.graphs > 1
    (place,) = found.breaks
    assert (place.file, place.line) == ("breaking_model/layers/prints.py", 8)
    assert "graph_break" in place.reason
    assert "\n" not in place.reason
    assert "through the first 2 of 4 layers" in found.note
    assert len(model.model.layers) == 4


# The alarm may ring while the garbage collector calls Hypothesis, which swallows it; it rings again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tracing_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genopt.profiling.graph_breaks.START_S", 0.0)
    monkeypatch.setattr("genopt.profiling.graph_breaks.MODULE_S", 0.0)
    monkeypatch.setattr("genopt.profiling.graph_breaks.AGAIN_S", 0.05)  # so small a model is traced in half a second
    found = find_graph_breaks(llama(), CPU, left_s=0.05)
    assert found.count is None
    assert found.note.startswith("not found out: tracing was stopped")
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_model_that_cannot_be_traced_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(model.model, "forward", lambda **_: (_ for _ in ()).throw(ValueError("this model has\nno static cache")))
    found = find_graph_breaks(model, CPU, left_s=600.0)
    assert found.count is None
    assert found.note == "not traced: this model has"


def test_too_little_time_leaves_it_out() -> None:
    found = find_graph_breaks(llama(), CPU, left_s=-3.0)
    assert found.count is None
    assert found.note.endswith("and 0 s were left; give a larger --budget")
