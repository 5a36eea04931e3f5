"""Which GPUs a process sees, as CUDA would, and what is known where the driver does not tell."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from genopt.models import nvml
from genopt.testing.fake_nvml import H100, FakeNvml


def machine_of(monkeypatch: pytest.MonkeyPatch, *gpus: Mapping[str, Any], visible: str | None = None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2,0", [2, 0]),
        ("0, 1", [0, 1]),
        ("1,-1,2", [1]),  # CUDA stops at the first name that is no GPU's
        ("0,7,1", [0]),
        ("GPU-b123,0", [1, 0]),
        ("GPU-c", [2]),
        ("GPU-", []),  # whose it is cannot be told
        ("0,", [0]),
    ],
)
def test_gpus_are_visible_as_they_are_to_cuda(visible: str | None, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(monkeypatch, H100, H100, H100, visible=visible)
    with nvml.visible_devices() as (_, found):
        assert found == seen
