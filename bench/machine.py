"""What the kernel and the driver say of this machine: CPU, clocks, limits of the container, GPU.

What cannot be found out is None, and `reasons` beside it says why.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

VECTOR_UNITS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "neon": "NEON",
}
"""Flag -> what a device is called by, the ablest first: a virtual machine's CPUs may share a name and not these."""
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "neon", "sve", "bf16")
SYS = Path("/sys")
PROC = Path("/proc")
UNLIMITED = "max"
"""What a limit reads where there is none, as in the kernel's own files."""
_V1_UNLIMITED = 1 << 62

Questions = Mapping[str, tuple[Callable[[], Any], str]]


def ask(questions: Questions, *errors: type[Exception]) -> dict[str, Any]:
    """The answers by name, None for unknown ones, and `reasons` for these.

    Args:
        questions: name -> (what finds it out, why it may be None).
        errors: what a question raises that cannot be answered; its text is the reason.
    """
    answers: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, (question, why) in questions.items():
        try:
            answers[name] = question()
        except errors as error:
            answers[name], why = None, str(error).split("\n")[0]
        if answers[name] is None:
            reasons[name] = why
    return {**answers, "reasons": reasons}


def cpu_facts() -> dict[str, Any]:
    """Name, cores, flags that matter, memory [B], clocks, limits of the container."""
    return {
        "name": cpu_name(),
        "cores": os.cpu_count(),
        "affinity": affinity(),
        "flags": sorted(cpu_flags() & set(FLAGS)),
        "memory": _total_memory(),
        "clocks": clocks(),
        "limits": limits(),
    }


def cpu_flags() -> set[str]:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return set(value.split())
    return set()


def cpu_name() -> str:
    return _first("model name") or platform.processor() or platform.machine()


def vector_units() -> str | None:
    """The ablest instructions that models are computed with, None where no known flag is set."""
    flags = cpu_flags()
    return next((name for flag, name in VECTOR_UNITS.items() if flag in flags), None)


def affinity() -> int | None:
    """Cores that this process may run on; None where the system does not bind processes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def usable_cores() -> float:
    """Cores that our processes can use at once: affinity and the container's quota."""
    cores = float(affinity() or os.cpu_count() or 1)
    quota = limits()["cpus"]
    return min(cores, quota) if isinstance(quota, float) else cores


def clocks() -> dict[str, Any]:
    """Of the first core: governor, frequency now and at most [MHz], whether it may boost."""
    scaling = SYS / "devices/system/cpu/cpu0/cpufreq"
    hidden = "the kernel shows no cpufreq here"
    return ask(
        {
            "governor": (lambda: _read(scaling / "scaling_governor"), hidden),
            "frequency_mhz": (lambda: _khz(scaling / "scaling_cur_freq") or _cpuinfo_mhz(), hidden),
            "max_mhz": (lambda: _khz(scaling / "scaling_max_freq"), hidden),
            "boost": (_boost, hidden),
        }
    )


def limits() -> dict[str, Any]:
    """What the control group allows: cores of CPU time, bytes of memory; `max` where it sets no limit."""
    return ask(
        {
            "cpus": (lambda: _least(map(_quota, _groups("cpu"))), "no control group can be read"),
            "memory": (lambda: _least(map(_memory_limit, _groups("memory"))), "no control group can be read"),
        }
    )


def gpu_handle() -> Any:
    """NVML's handle of the GPU that torch uses, whatever its number is there.

    Raises:
        pynvml.NVMLError: there is no driver, or it does not know the GPU.
    """
    import pynvml
    import torch

    pynvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")


def gpu_facts() -> dict[str, Any]:
    """Driver, memory [B], clocks [MHz], power limit [W] and how many processes compute on the GPU."""
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())

    def clock(kind: int) -> Callable[[], int]:
        return lambda: int(pynvml.nvmlDeviceGetClockInfo(gpu_handle(), kind))

    questions: dict[str, Callable[[], Any]] = {
        "driver": lambda: gpu_handle() and pynvml.nvmlSystemGetDriverVersion(),
        "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(gpu_handle()) / 1000,
        "sm_clock_mhz": clock(pynvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": lambda: int(pynvml.nvmlDeviceGetMaxClockInfo(gpu_handle(), pynvml.NVML_CLOCK_SM)),
        "memory_clock_mhz": clock(pynvml.NVML_CLOCK_MEM),
        "processes": lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu_handle())),
    }
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        **ask({name: (question, "NVML says nothing") for name, question in questions.items()}, pynvml.NVMLError),
    }


def _boost() -> bool | None:
    cpu = SYS / "devices/system/cpu"
    on, off = _read(cpu / "cpufreq/boost"), _read(cpu / "intel_pstate/no_turbo")
    if on is not None:
        return on == "1"
    return None if off is None else off == "0"


def _groups(controller: str) -> Iterator[Path]:
    """This process's control group and those above it, of the controller in version 2, else 1."""
    mounted = SYS / "fs/cgroup"
    unified = mounted / "cgroup.controllers"
    for line in (_read(PROC / "self/cgroup") or "").splitlines():
        number, names, path = line.split(":", 2)
        if number == "0" and unified.exists():
            root = mounted
        elif controller in names.split(","):
            root = mounted / controller
        else:
            continue
        folder = root / path.strip("/")
        while folder.is_relative_to(root):
            yield folder
            folder = folder.parent


def _quota(group: Path) -> float | None:
    """Cores; infinite without a limit, None if the group does not say."""
    allowed, _, period = (_read(group / "cpu.max") or "").partition(" ")
    if not allowed:
        allowed, period = _read(group / "cpu.cfs_quota_us") or "", _read(group / "cpu.cfs_period_us") or ""
    if not allowed or not period:
        return None
    return float("inf") if allowed in {UNLIMITED, "-1"} else int(allowed) / int(period)


def _memory_limit(group: Path) -> float | None:
    """Bytes; infinite without a limit, None if the group does not say."""
    text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    if text is None:
        return None
    return float("inf") if text == UNLIMITED or int(text) >= _V1_UNLIMITED else float(text)


def _least(found: Iterator[float | None]) -> float | str | None:
    known = [value for value in found if value is not None]
    if not known:
        return None
    return UNLIMITED if min(known) == float("inf") else min(known)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _khz(path: Path) -> float | None:
    text = _read(path)
    return int(text) / 1000 if text else None


def _cpuinfo_mhz() -> float | None:
    text = _first("cpu MHz")
    return float(text) if text else None


def _first(field: str) -> str | None:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return " ".join(value.split())
    return None


def _cpuinfo() -> list[str]:
    return (_read(PROC / "cpuinfo") or "").splitlines() if sys.platform == "linux" else []


def _total_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
