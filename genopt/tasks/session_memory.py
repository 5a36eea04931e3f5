"""Memory of an engine session as metrics: its processes, its device, its key-value cache."""

from __future__ import annotations

from typing import Protocol

from genopt.engines.base import Memory
from genopt.measure.process_tree import TreePeak
from genopt.plan import JsonValue, Metric


class MeasuredSession(Protocol):
    """What of `genopt.process.SessionProcess` is needed here."""

    def memory(self) -> Memory:
        """See `TextSession.memory`."""

    def tree_peak(self) -> TreePeak:
        """See `SessionProcess.tree_peak`."""

    def device_bytes(self) -> int | None:
        """See `SessionProcess.device_bytes`."""


def memory_metrics(session: MeasuredSession, *, context: int) -> dict[str, Metric]:
    """Every kind of memory that can be read; what cannot is absent.

    `peak_memory_bytes` is the device's where there is one, else that of all processes of the session. Room for keys and values that the engine
    reserved and no request filled is left out of it: how large that is says nothing of the model, and would hide what it needs.

    Args:
        session: An open session that has answered the measured requests.
        context: Tokens of one measured request with its answer.
    """
    memory, tree, device = session.memory(), session.tree_peak(), session.device_bytes()
    resident = _bytes(
        max(tree.bytes, memory.peak_rss_bytes), "resident set of all processes of the session at its peak", processes=tree.processes,
        engine_process_bytes=memory.peak_rss_bytes,
    )  # fmt: skip
    peak = _bytes(memory.device_peak_bytes, "device allocator at its peak") if memory.device_peak_bytes else resident
    found = {"peak_memory_bytes": _without_idle_room(peak, memory), "peak_rss_bytes": resident}
    if device is not None:
        found["device_memory_bytes"] = _bytes(device, "the session's processes as the driver (NVML) counts them, after the measurements")
    if memory.kv_bytes_per_token:
        found["kv_cache_bytes"] = _bytes(
            memory.kv_bytes_per_token * context, "keys and values of one stream at the measured context", context_tokens=context,
            bytes_per_token=memory.kv_bytes_per_token, room_bytes=memory.kv_reserved_bytes or memory.kv_cache_bytes,
        )  # fmt: skip
    return found


def _without_idle_room(peak: Metric, memory: Memory) -> Metric:
    """A peak with as much of the room for keys and values as requests filled."""
    if not memory.kv_reserved_bytes:
        return peak
    what = f"{peak.conditions['what']}, with as much of the room reserved for keys and values as requests filled"
    room: dict[str, JsonValue] = {"what": what, "reserved_bytes": memory.kv_reserved_bytes, "filled_bytes": memory.kv_cache_bytes}
    value = peak.value - memory.kv_reserved_bytes + memory.kv_cache_bytes
    return peak.model_copy(update={"value": value, "conditions": {**peak.conditions, **room}})


def _bytes(value: float, what: str, **conditions: JsonValue) -> Metric:
    return Metric(value=float(value), unit="bytes", conditions={"what": what, **conditions})
