"""Whether anybody else used the machine during a burst: CPU time that is not ours, stolen time, waiting, other GPU
processes.

CPU time alone misses who interrupts often and briefly; the kernel's pressure counters (`/proc/pressure`, "some": the
share of time in which a task that could run had no core) see them. Threads of ours that outnumber the cores wait for
one another: their pressure is then kept and not judged. Waiting for the disk is kept and not judged either: a burst
does not read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine

ALLOWED = 0.10
"""Others may use this share of one core before a burst counts as disturbed."""
ALLOWED_PRESSURE = 0.05
"""Tasks may wait for a core, or for memory, this share of the time."""
AT_WORK = 0.10
"""A thread of ours counts as one that needs a core if it used this share of one."""
PRESSURES = ("cpu", "memory", "io")
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
    gpu_strangers: int | None = 0
    """Processes on our GPU beyond our workers; 0 without a GPU of ours, None where the driver does not say."""
    pressure: Mapping[str, float | None] = field(default_factory=dict)
    """Time in which some task waited for a core, memory, the disk [s]; None or absent: the kernel does not say."""
    threads: Mapping[int, float] = field(default_factory=dict)
    """CPU time of each thread of this process and the workers [s]."""


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
    own = [Path(f"/proc/{pid}") for pid in {os.getpid(), *pids}]
    return Reading(
        wall=time.monotonic(),
        busy=(user + nice + system + irq + softirq) / _TICK,
        stolen=steal / _TICK,
        ours=sum(_cpu_time(process) for process in own),
        gpu_strangers=_gpu_strangers(len(pids)) if gpu else 0,
        pressure={kind: _pressure(kind) for kind in PRESSURES},
        threads={int(task.name): _cpu_time(task) for process in own for task in process.glob("task/*")},
    )


def between(before: Reading | None, after: Reading | None) -> dict[str, Any]:
    """What happened between two readings, and whether that disturbs.

    Returns:
        others, stolen: cores used by others and by the hypervisor; pressure: shares of the time by kind;
        threads: ours that needed a core; gpu_strangers; disturbed, and `by` what. None is unknown, for the reason.
    """
    if before is None or after is None:
        return {"others": None, "stolen": None, "disturbed": None, "reason": "no /proc/stat on this system"}
    wall = max(after.wall - before.wall, 1e-9)
    others = max((after.busy - before.busy) - (after.ours - before.ours), 0.0) / wall
    stolen = max(after.stolen - before.stolen, 0.0) / wall
    pressure = {kind: _share(before.pressure.get(kind), after.pressure.get(kind), wall) for kind in PRESSURES}
    threads = sum(used - before.threads.get(task, 0.0) > AT_WORK * wall for task, used in after.threads.items())
    known = [reading.gpu_strangers for reading in (before, after) if reading.gpu_strangers is not None]
    strangers = max(known) if known else None
    crowded = threads > machine.usable_cores()
    # a counter moves in ticks: a short burst cannot be told apart from one tick of each process
    grain = 4 / _TICK / wall
    waits = ALLOWED_PRESSURE + grain
    causes = {
        "others": others > ALLOWED + grain,
        "stolen": stolen > ALLOWED + grain,
        "gpu": bool(strangers),
        "cpu pressure": (pressure["cpu"] or 0.0) > waits and not crowded,
        "memory pressure": (pressure["memory"] or 0.0) > waits,
    }
    reasons = []
    if None in pressure.values():
        reasons.append("the kernel does not count pressure")
    if strangers is None:
        reasons.append("the driver does not say who computes on the GPU")
    if crowded:
        reasons.append(f"cpu pressure is not judged: {threads} threads of ours share {machine.usable_cores():g} cores")
    return {
        "others": round(others, 4),
        "stolen": round(stolen, 4),
        "pressure": pressure,
        "threads": threads,
        "gpu_strangers": strangers,
        "disturbed": any(causes.values()),
        "by": [cause for cause, holds in causes.items() if holds],
        "reason": "; ".join(reasons),
    }


def _share(before: float | None, after: float | None, wall: float) -> float | None:
    return None if before is None or after is None else round(max(after - before, 0.0) / wall, 4)


def _pressure(kind: str) -> float | None:
    try:
        some = Path(f"/proc/pressure/{kind}").read_text().split("\n", 1)[0]
    except OSError:  # no such file, or counting is switched off
        return None
    return int(some.rpartition("total=")[2]) / 1e6


def _cpu_time(task: Path) -> float:
    """User and system time of a process or thread [s]; 0 once it has ended."""
    try:
        fields = (task / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def _gpu_strangers(workers: int) -> int | None:
    """Processes on our GPU but the workers, by count: a container does not see the driver's process ids."""
    import pynvml

    try:
        return max(len(pynvml.nvmlDeviceGetComputeRunningProcesses(machine.gpu_handle())) - workers, 0)
    except pynvml.NVMLError:
        return None
