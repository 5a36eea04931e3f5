"""What the technique and engine openvino refuse, wherever their environment is or is not built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genopt.engines.openvino import OpenVinoEngine
from genopt.errors import InfeasibleError, SpecError, StageError
from genopt.process import SessionProcess
from genopt.techniques.openvino import OpenVino
from genopt.testing.contracts import runs_here


def test_groups_divide_the_widths_or_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"no config\.json"):
        OpenVino.check(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 576, "intermediate_size": 1536}))
    OpenVino.check(tmp_path, {"weights": "int8", "group_size": 128})
    OpenVino.check(tmp_path, {"weights": "int4", "group_size": 64})
    with pytest.raises(InfeasibleError, match=r"128 weights does not divide hidden_size = 576; choose a smaller group_size"):
        OpenVino.check(tmp_path, {"weights": "int4", "group_size": 128})
    with pytest.raises(SpecError, match="weights"):
        OpenVino.check(tmp_path, {"weights": "int2"})


def test_options_are_checked() -> None:
    OpenVinoEngine.check({"threads": 2, "precision": "f32", "cache_type": "u8"})
    with pytest.raises(SpecError, match="precision"):
        OpenVinoEngine.check({"precision": "f8"})


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    built = runs_here("engines", "openvino")
    said = "export the model with the technique openvino" if built else "genopt env build openvino"
    with pytest.raises(StageError if built else InfeasibleError, match=said):
        SessionProcess("openvino", tmp_path, {}, log=tmp_path / "log.txt", timeout_s=60).open()
