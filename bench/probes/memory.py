"""How much memory a burst takes, and what it is made of.

Peak: what torch's allocator handed out (CUDA), or the process' high-water mark, reset at the start (CPU). At the
operation that raised it last, every storage alive is known by the component that `holdings()` names it by, or as an
activation. On a CPU the process is more than its tensors: what was there before, pages read from files, and what the
C library keeps free are parts too.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.probes import resident
from bench.probes.leak import SLOPE, leak
from bench.probes.tensors import StorageWatch
from bench.technique import Prepared, Step

RISE = 0.001
"""A peak that is higher by less than this share is the same one, a few pages later."""
CREEP = 0.05
"""A process' peak that is higher by less than this share is the same one while hardly more lives in tensors (`MORE`):
what they gave back is kept, in pieces that the next operation cannot use."""
MORE = 0.01
"""More bytes that live, as a share."""
OUTPUTS = "outputs"
"""What a step hands over: kept by the harness, not by the technique."""


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


def reset_peak(device: str) -> str:
    """Forget the peak so far; returns why that was not possible, or ''."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return ""
    return resident.reset_high_water()


def peak(device: str) -> int | None:
    """Highest bytes since the reset, as the machine must find them: reserved (CUDA) or resident (CPU)."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()
    return resident.process_status().get("peak")


@dataclass
class Gauge:
    """A device's peak, and what else was there when it was reached."""

    device: str
    peak: int = 0
    alive: int = 0
    """Bytes of the tensors that lived then [B]."""
    now: int = 0
    """Bytes still there when the peak was read: less than it by what an operation had given back [B]."""
    file: int = 0
    """Of these, pages read from files [B]; CPU only."""
    free: int | None = None
    """Of these, kept free by the C library [B]; CPU only."""
    allocated: int = 0
    """In use of what the C library was asked for [B]; CPU only."""

    def rose(self, alive: int) -> bool:
        """Whether the peak is higher than when this was last so; what is there now is then kept.

        alive: bytes of the tensors that live now [B].
        """
        if self.device.startswith("cuda"):
            highest, now = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
            file, free = 0, None
        else:
            status = resident.process_status()
            highest, now, file = (status.get(key, 0) for key in ("peak", "now", "file"))
        creeps = not self.device.startswith("cuda") and alive <= (1 + MORE) * self.alive
        if highest <= (1 + (CREEP if creeps else RISE)) * self.peak:
            return False
        if not self.device.startswith("cuda"):
            free, self.allocated = resident.free_in_heap(), resident.allocated()
        self.peak, self.alive, self.now, self.file, self.free = highest, alive, now, file, free
        return True


@dataclass
class MemoryProbe:
    """Watches one burst: hand `phase` to the job, `follow` its steps to the end, then `read`."""

    prepared: Prepared
    device: str
    before: Mapping[str, int] = field(default_factory=resident.at_rest)
    """`at_rest()` before the technique prepared anything: interpreter and libraries."""
    largest: dict[str, int] = field(default_factory=dict)
    fullest: dict[str, int] = field(default_factory=dict)
    """The components at the mark or end of a step at which together they held most."""
    unnamed: list[int] = field(default_factory=list)
    """Bytes alive that no component names, at the end of each step [B]."""
    reason: str = ""

    def __post_init__(self) -> None:
        gc.collect()
        resident.give_back()  # what earlier bursts left free is no need of this one
        self.gauge = Gauge(self.device)
        self.watch = StorageWatch(self.device, self.gauge)
        holdings = {component: list(tensors) for component, tensors in self.prepared.holdings().items()}
        self.mapped = resident.in_files(holdings)
        self.watch.leave_out([tensor for tensors in self.mapped.values() for tensor in tensors])
        self.watch.name(holdings)
        self.reason = reset_peak(self.device)
        self.watch.ask()

    def follow(self, steps: Iterator[Step]) -> None:
        """Run the steps to their end."""
        gc.freeze()  # what was there before is not searched again
        try:
            while True:
                with self.watch:  # entered anew: a mode held across a `yield` would leak
                    step = next(steps, None)
                if step is None:
                    return
                self.watch.name({OUTPUTS: step.outputs})
                self.look()
                self.watch.ask()  # many small operations may have raised it
                del step
                self.unnamed.append(self._left_unnamed())
        finally:
            gc.unfreeze()

    def _left_unnamed(self) -> int:
        unnamed = self.watch.unnamed()
        if self.unnamed and unnamed > self.unnamed[-1] + SLOPE:
            gc.collect()  # garbage in reference cycles is no leak
            unnamed = self.watch.unnamed()
        return unnamed

    def look(self) -> None:
        """Read what is held now."""
        holdings = {component: list(tensors) for component, tensors in self.prepared.holdings().items()}
        self.watch.name(holdings)
        held = bytes_held(holdings)
        for component, count in held.items():
            self.largest[component] = max(count, self.largest.get(component, 0))
        if sum(held.values()) > sum(self.fullest.values()):
            self.fullest = held

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer, self.watch.phase = self.watch.phase, name
        try:
            yield
        finally:
            self.watch.phase = outer
            self.look()

    def read(self) -> dict[str, Any]:
        """Bytes, unknown ones as None with the reason.

        peak: of the device; reserved, process: see the module, with `process_reason` where the driver does not tell.
        device: in use on the whole GPU when the burst was over, by whomever; CUDA only.
        runtime: resident before the technique prepared anything.
        components, named: what `holdings()` holds at the most, exact; largest: each component's own most.
        mapped: of these, what lies in mapped files.
        parts: what the peak is made of: `runtime` and `files` (pages of libraries and weights read since; CPU), the
            components, `activations` (alive and of no component), `allocator` (kept free by the C library; CPU),
            `libraries` (what the C library was asked for by others than tensors: tokenizers, kernels' scratch; CPU),
            `operators` (taken and given back inside the one operation that reached the peak, `operator`).
        activations: those of the peak by the phase they were born in.
        explained: parts over peak; rest: what of the peak is in no part; excess: what the parts have too much.
        leak: steady growth of what no component names [B/step].
        attention: attention operators that ran; `eager` where none did.
        """
        leaked, unknown = leak(self.unnamed)
        report: dict[str, Any] = {
            "peak": None,
            "reserved": None,
            "process": None,
            "process_reason": "",
            "device": None,
            "runtime": self.before.get("now"),
            "components": self.fullest,
            "largest": self.largest,
            "named": sum(self.fullest.values()),
            "mapped": bytes_held(self.mapped),
            "parts": None,
            "activations": None,
            "operator": self.watch.operator,
            "explained": None,
            "rest": None,
            "excess": None,
            "leak": leaked,
            "leak_reason": unknown,
            "attention": sorted(self.watch.attention) or ["eager"],
            "reason": self.reason,
        }
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
            report["peak"] = torch.cuda.max_memory_allocated()
            report["reserved"] = torch.cuda.max_memory_reserved()
            report["process"], report["process_reason"] = nvml_process()
            free, there = torch.cuda.mem_get_info()
            report["device"] = there - free
        elif not self.reason:
            report["process"] = resident.process_status()
            report["peak"] = report["process"].get("peak")
            if report["peak"] is None:
                report["reason"] = "no /proc/self/status on this system"
        if report["peak"] is not None:
            report |= self._made_of(report["peak"])
        return report

    def _made_of(self, peak: int) -> dict[str, Any]:
        named, unnamed = self.watch.at_peak()
        parts: dict[str, int] = {}
        if not self.device.startswith("cuda"):
            parts["runtime"] = self.before["now"]
            parts["files"] = max(self.gauge.file - self.before["file"], 0)
        parts |= {**named, "activations": sum(unnamed.values())}
        if self.gauge.free is not None:
            parts["allocator"] = self.gauge.free + peak - self.gauge.peak
        parts["operators"] = self.gauge.peak - self.gauge.now
        if not self.device.startswith("cuda"):
            others = self.gauge.allocated - self.before["allocated"] - sum(named.values()) - sum(unnamed.values())
            # bytes that were never touched are not resident
            parts["libraries"] = min(max(others, 0), max(peak - sum(parts.values()), 0))
        total = sum(parts.values())
        return {
            "parts": parts,
            "activations": dict(unnamed),
            "explained": total / peak,
            "rest": max(peak - total, 0),
            "excess": max(total - peak, 0),
        }


def nvml_process() -> tuple[int | None, str]:
    """What the driver counts for this process on its GPU [B], or None and why it is not known."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        listed = {one.pid: one.usedGpuMemory for one in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    if os.getpid() not in listed:
        return None, f"NVML lists {len(listed)} processes and not this one, as in a container"
    if not listed[os.getpid()]:
        return None, "NVML lists this process without its memory"
    return int(listed[os.getpid()]), ""
