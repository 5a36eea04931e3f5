"""What `genopt deploy` refuses before it looks at a run or a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from genopt.cli import main
from genopt.distributed.serve_file import checked_config
from genopt.testing.fake_run import write_fake_run


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--canary", "x"], "--canary 10%"),
        (["--canary", "0%"], "--canary 10%"),
        (["--canary", "101%"], "--canary 10%"),
        (["--canary", "nan"], "--canary 10%"),
        (["--canary", "10%", "--step-time", "soon"], "--step-time 5m"),
        (["--shadow"], "add --canary 10%"),
        (["--follow"], "add --canary 10%"),
    ],
)
def test_a_canary_that_cannot_be_read_is_a_usage_error(words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", str(tmp_path), *words]) == 2
    assert reason in capsys.readouterr().err


def test_a_variant_whose_files_are_gone_is_not_deployed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_fake_run(tmp_path / "run")
    assert checked_config(run, variant=None, listener=None).is_file()
    (tmp_path / "run-model" / "model.safetensors").unlink()
    assert main(["deploy", str(run.path)]) == 5
    assert "run-model is gone from the store" in capsys.readouterr().err
