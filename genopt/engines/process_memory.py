"""Memory of the running process, from Linux's own counters."""

from __future__ import annotations

from pathlib import Path

from genopt.engines.base import Memory


def process_memory(device_peak_bytes: int = 0) -> Memory:
    """Resident memory now and at its peak.

    `ru_maxrss` is no peak of this program: Linux lets it start at the size of the process that started this one.

    Args:
        device_peak_bytes: What the device's allocator reports, 0 on CPUs.
    """
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    rss, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return Memory(rss_bytes=rss, peak_rss_bytes=max(rss, peak), device_peak_bytes=device_peak_bytes)
