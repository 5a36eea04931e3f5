"""Which GPUs a process sees, as CUDA would, and what is known where the driver does not tell."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from genopt.models import nvml
from genopt.testing.fake_nvml import H100, FakeNvml, NVMLErrorNoPermission, NVMLErrorNotSupported


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


@pytest.mark.parametrize(
    ("gpu", "memory"),
    [
        (H100, (60 * 2**30, 80 * 2**30)),
        ({**H100, "MemoryInfo": NVMLErrorNotSupported()}, (10, 40)),
        ({**H100, "MemoryInfo": NVMLErrorNoPermission()}, None),
    ],
)
def test_a_gpu_without_memory_of_its_own_has_the_hosts(gpu: Mapping[str, Any], memory: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10, total=40))
    machine_of(monkeypatch, gpu)
    assert nvml.memory() == memory


def test_where_no_gpu_is_visible_its_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(monkeypatch, H100, visible="-1")
    assert nvml.memory() is None
    assert nvml.capability() is None
