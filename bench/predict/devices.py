"""How much memory a device has, and how fast it reads and computes at most: as its maker lists it, or measured here."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.errors import UsageError
from bench.registry import did_you_mean

MEASURED_FOR = 0.3
"""How long each of a CPU's limits is measured [s]."""
COPIED = 2**27
"""A copy of it does not fit into a cache [B]."""
SIDE = 1024
"""Of the square matrices whose product is timed."""


@dataclass(frozen=True)
class Device:
    """A device and its limits."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory: int
    """[B]"""
    bandwidth: float
    """Of its memory [B/s]."""
    flops: Mapping[str, float]
    """Dtype -> dense operations of matrix products [FLOP/s]."""
    source: str

    def rate(self, dtype: str) -> float:
        """Operations a second in a dtype; those of float32 where none is known [FLOP/s]."""
        return self.flops.get(dtype, self.flops["float32"])


_HOPPER = {"bfloat16": 989e12, "float16": 989e12, "float32": 67e12}
_AMPERE = {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12}
LISTED = {
    "h200": Device("NVIDIA H200 SXM", "cuda", 141 * 10**9, 4.8e12, _HOPPER, "NVIDIA H200 data sheet, dense"),
    "h100": Device("NVIDIA H100 SXM", "cuda", 80 * 10**9, 3.35e12, _HOPPER, "NVIDIA H100 data sheet, dense"),
    "a100": Device("NVIDIA A100 SXM 80GB", "cuda", 80 * 10**9, 2.039e12, _AMPERE, "NVIDIA A100 data sheet, dense"),
    "a100-40gb": Device("NVIDIA A100 SXM 40GB", "cuda", 40 * 10**9, 1.555e12, _AMPERE, "NVIDIA A100 data sheet, dense"),
}


def find(name: str, dtype: str = "auto") -> Device:
    """A device by its name: `cpu` is this machine, `cuda` the GPU in it, else one of the list.

    Args:
        dtype: the one that a CPU's computing is measured in, beside float32.

    Raises:
        UsageError: it is not known.
    """
    if name in LISTED:
        return LISTED[name]
    if name == "cpu":
        return this_cpu(dtype)
    if name == "cuda":
        import torch

        found = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        known = listed(found)
        if known is not None:
            return replace(known, memory=torch.cuda.get_device_properties(0).total_memory)
        raise UsageError(
            f"device: {found or 'no GPU'} is here and its limits are not listed; name one of {', '.join(LISTED)}"
        )
    raise UsageError(f"unknown device {name!r}{did_you_mean(name, ['cpu', 'cuda', *LISTED])}")


def listed(gpu: str) -> Device | None:
    """The listed device that a GPU's own name means; None if none does: all are SXM ones, others are slower."""
    if re.search("PCIE|NVL", gpu.upper()):
        return None
    for key in sorted(LISTED, key=len, reverse=True):  # a100-40gb before a100
        if all(re.search(rf"\b{word}", gpu.upper()) for word in key.upper().split("-")):
            return LISTED[key]
    return None


def this_cpu(dtype: str = "auto", threads: int | None = None) -> Device:
    """This machine's CPU, its limits measured in about a second: they are what else runs on it leaves over.

    Args:
        dtype: as of `find`.
        threads: that compute; as many as torch takes if None.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _measured(dtype)
    finally:
        torch.set_num_threads(before)


def _measured(dtype: str) -> Device:
    import psutil
    import torch

    from bench import machine

    names = dict.fromkeys(["float32", *([] if dtype == "auto" else [dtype])])
    flops = {}
    for name in names:
        square = torch.ones(SIDE, SIDE, dtype=getattr(torch, name))
        flops[name] = 2 * SIDE**3 / _fastest(lambda square=square: square @ square)
    block, copy = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    bandwidth = 2 * COPIED / _fastest(lambda: copy.copy_(block))
    source = f"measured now on {torch.get_num_threads()} threads: a copy, a product of {SIDE} x {SIDE}"
    return Device(machine.cpu_name(), "cpu", int(psutil.virtual_memory().total), bandwidth, flops, source)


def _fastest(work: Any) -> float:
    """The shortest of several repeats, after one that does not count [s]."""
    work()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < MEASURED_FOR or best == float("inf"):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
