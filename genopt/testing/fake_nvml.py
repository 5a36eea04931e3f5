"""A management library of GPUs that are not there; what a GPU is not said to tell, it refuses to tell, as NVIDIA's own does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

H100: Mapping[str, Any] = {
    "Name": "NVIDIA H100 80GB HBM3", "CudaComputeCapability": (9, 0),
    "MemoryInfo": SimpleNamespace(free=60 * 2**30, total=80 * 2**30, used=20 * 2**30),
    "ClockInfo": 1980, "Temperature": 41, "PowerUsage": 180_400, "CurrentClocksEventReasons": 0x24, "TotalEnergyConsumption": 5_000,
    "ComputeRunningProcesses": (),
}  # fmt: skip
"""What a GPU says that tells everything, by the end of the question's name."""
GB10: Mapping[str, Any] = {"Name": "NVIDIA GB10", "CudaComputeCapability": (12, 1)}
"""One that shares the host's memory, and tells little more than its name."""


class NVMLError(Exception):
    """Whatever the library does not answer."""


class NVMLErrorNotSupported(NVMLError):
    """The GPU has no such reading."""


class NVMLErrorNoPermission(NVMLError):
    """Only others may ask."""


class FakeNvml(ModuleType):
    """Stands in for `pynvml`; a handle is the index of its GPU.

    Args:
        gpus: What each GPU answers, by the end of the question's name; an exception is raised.
    """

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLErrorNotSupported
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = range(3)

    def __init__(self, gpus: Sequence[Mapping[str, Any]]) -> None:
        super().__init__("pynvml")
        self._gpus = [{"UUID": f"GPU-{'abcdefgh'[index]}123", **gpu} for index, gpu in enumerate(gpus)]

    def __getattr__(self, name: str) -> Any:
        """Any question about one GPU."""
        question = name.removeprefix("nvmlDeviceGet")
        if question == name:
            raise AttributeError(name)

        def answer(device: int, *_arguments: object) -> Any:
            found = self._gpus[device].get(question, NVMLErrorNotSupported(name))
            if isinstance(found, Exception):
                raise found
            return found

        return answer

    def nvmlInit(self) -> None:
        """Finds the driver."""

    def nvmlShutdown(self) -> None:
        """Forgets it."""

    def nvmlSystemGetDriverVersion(self) -> str:
        """That of every GPU."""
        return "570.124.06"

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs there are, visible or not."""
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """The handle of a GPU by its place on the bus."""
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        """That of a GPU by its whole UUID."""
        for index, gpu in enumerate(self._gpus):
            if gpu["UUID"] == uuid:
                return index
        raise NVMLError(uuid)
