"""How much memory a burst takes, and what it is made of.

Peak: what torch's allocator handed out (CUDA), or the process' high-water mark, reset at the start (CPU). Parts:
the unique storages of every component that `holdings()` names, read at each step and each end of a phase.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.technique import Prepared

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def bytes_held(holdings: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """Bytes of storage per component. A storage counts once: under the first component that holds it."""
    seen: set[tuple[str, int]] = set()
    held: dict[str, int] = {}
    for component, tensors in holdings.items():
        held.setdefault(component, 0)
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = (str(storage.device), storage.data_ptr())
            if storage.data_ptr() and key not in seen:
                seen.add(key)
                held[component] += storage.nbytes()
    return held


def process_status() -> dict[str, int]:
    """This process' resident bytes: now, highest since the reset, anonymous and file-backed. Empty off Linux."""
    names = {"VmRSS": "now", "VmHWM": "peak", "RssAnon": "anonymous", "RssFile": "file"}
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {names[key]: int(value.split()[0]) * 1024 for key, _, value in fields if key in names}


def reset_peak(device: str) -> str:
    """Forget the peak so far; returns why that was not possible, or ''."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return ""
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        return f"the high-water mark cannot be reset here ({error.strerror})"
    return ""


def peak(device: str) -> int | None:
    """Highest bytes since the reset, as the machine must find them: reserved (CUDA) or resident (CPU)."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()
    return process_status().get("peak")


@dataclass
class MemoryProbe:
    """Watches one burst: hand `phase` to the job, call `look` after every step, then `read`."""

    prepared: Prepared
    device: str
    runtime: int = 0
    """Resident bytes before the technique prepared anything: interpreter and libraries [B]."""
    largest: dict[str, int] = field(default_factory=dict)
    fullest: dict[str, int] = field(default_factory=dict)
    """The components at the moment when together they held most."""
    end: dict[str, int] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        gc.collect()
        self.reason = reset_peak(self.device)

    def look(self) -> None:
        """Read what is held now."""
        self.end = bytes_held(self.prepared.holdings())
        for component, held in self.end.items():
            self.largest[component] = max(held, self.largest.get(component, 0))
        if sum(self.end.values()) > sum(self.fullest.values()):
            self.fullest = self.end

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.look()

    def read(self) -> dict[str, Any]:
        """Bytes, unknown ones as None with the reason."""
        named = sum(self.fullest.values())
        report: dict[str, Any] = {
            "peak": None,
            "reserved": None,
            "process": None,
            "runtime": self.runtime,
            "components": self.fullest,
            "largest": self.largest,
            "named": named,
            "rest": None,
            "reason": self.reason,
        }
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            report["peak"] = torch.cuda.max_memory_allocated()
            report["reserved"] = torch.cuda.max_memory_reserved()
            report["process"] = _nvml_process()
            report["rest"] = max(report["peak"] - named, 0)
        elif not self.reason:
            status = process_status()
            report["peak"] = status.get("peak")
            report["process"] = status
            if report["peak"] is not None:
                report["rest"] = max(report["peak"] - named - self.runtime, 0)
            else:
                report["reason"] = "no /proc/self/status on this system"
        return report


def _nvml_process() -> int | None:
    """What the driver counts for this process on its GPU [B]."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid():
                return int(process.usedGpuMemory) if process.usedGpuMemory else None
    except pynvml.NVMLError:
        return None
    return None
