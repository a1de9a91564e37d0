"""Whether anybody else used the machine during a burst: CPU time that is not ours, stolen time, other GPU processes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALLOWED = 0.10
"""Others may use this share of one core before a burst counts as disturbed."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reading:
    """Counters at one moment."""

    wall: float
    busy: float
    """CPU time of the whole machine but idle and waiting [s]."""
    stolen: float
    """CPU time the hypervisor gave to others [s]."""
    ours: float
    """CPU time of this process and the workers [s]."""
    gpu_strangers: int = 0
    """Processes on the GPU beyond our workers."""


def read(pids: Collection[int], gpu: bool = False) -> Reading | None:
    """The counters now; None where the system has none.

    Args:
        pids: our workers.
        gpu: whether to ask the driver who else is on the GPU.
    """
    try:
        first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(value) for value in first[:8])
    own = sum(_cpu_time(pid) for pid in {os.getpid(), *pids})
    strangers = max(_gpu_processes() - len(pids), 0) if gpu else 0
    busy = (user + nice + system + irq + softirq) / _TICK
    return Reading(time.monotonic(), busy, steal / _TICK, own / _TICK, strangers)


def between(before: Reading | None, after: Reading | None) -> dict[str, Any]:
    """What happened between two readings: cores used by others and stolen, and whether that disturbs."""
    if before is None or after is None:
        return {"others": None, "stolen": None, "disturbed": None, "reason": "no /proc/stat on this system"}
    wall = max(after.wall - before.wall, 1e-9)
    others = max((after.busy - before.busy) - (after.ours - before.ours), 0.0) / wall
    stolen = max(after.stolen - before.stolen, 0.0) / wall
    # a counter moves in ticks: a short burst cannot be told apart from one tick of each process
    grain = 4 / _TICK / wall
    return {
        "others": round(others, 4),
        "stolen": round(stolen, 4),
        "gpu_strangers": after.gpu_strangers,
        "disturbed": others > ALLOWED + grain or stolen > ALLOWED + grain or after.gpu_strangers > 0,
    }


def _cpu_time(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _gpu_processes() -> int:
    """How many processes compute on the first GPU, by count: a container does not see the driver's process ids."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return len(pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0)))
    except pynvml.NVMLError:
        return 0
