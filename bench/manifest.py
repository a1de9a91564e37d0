"""What a run ran on: device, versions, commit, settings that change figures. No host, no user, no environment dump."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench
from bench.errors import UsageError

ROOT = Path(bench.__file__).resolve().parent.parent
CODE = ("bench", "techniques", "benchmarks", "configs", "pyproject.toml", "constraints.txt")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy", "tokenizers")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "neon", "sve", "bf16")


def collect(device: str, dtype: str) -> dict[str, Any]:
    """The environment of a run, for its manifest and for every record."""
    import torch

    facts: dict[str, Any] = {
        "device": {"kind": device, "name": device_name(device), "dtype": dtype},
        "cpu": {
            "name": cpu_name(),
            "cores": os.cpu_count(),
            "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "threads": torch.get_num_threads(),
            "flags": sorted(cpu_flags() & set(CPU_FLAGS)),
            "memory": _total_memory(),
        },
        "versions": {"python": platform.python_version(), "bench": bench.__version__, **_versions()},
        "code": commit(),
        "torch": {
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cuda": torch.version.cuda,
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF"),
        },
        "hub_kernels": False,
        "system": platform.system(),
    }
    if device == "cuda":
        facts["gpu"] = gpu_facts()
    return facts


def resolve_device(wanted: str) -> str:
    """`auto` -> `cuda` where a GPU can be used, else `cpu`.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    import torch

    if wanted == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise UsageError("device: cuda is asked for, torch sees no CUDA device; use --device cpu")
    return "cpu"


def resolve_dtype(wanted: str, device: str) -> str:
    """`auto` -> bfloat16 where the device computes in it, else float32."""
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "bfloat16"
    return "bfloat16" if cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def cpu_flags() -> set[str]:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return set(value.split())
    return set()


def cpu_name() -> str:
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return " ".join(value.split())
    return platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """What titles and folders call the device."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {os.cpu_count()} cores"


def gpu_facts() -> dict[str, Any]:
    """Driver, clocks, power limit and what else runs on the GPU; unknown ones are None."""
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts: dict[str, Any] = {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        facts["driver"] = pynvml.nvmlSystemGetDriverVersion()
        facts["power_limit_w"] = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
        facts["sm_clock_mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        facts["memory_clock_mhz"] = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
        facts["processes"] = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError as error:
        facts["reason"] = f"NVML: {error}"
    return facts


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether the code (not the results) differs from it."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", *CODE)
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """What differs between two environments, by the path of the field."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*a, *b}):
        left, right, where = a.get(key), b.get(key), f"{path}.{key}".strip(".")
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, where)
        elif left != right:
            found.append((where, left, right))
    return found


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpuinfo() -> list[str]:
    if sys.platform != "linux":
        return []
    return Path("/proc/cpuinfo").read_text().splitlines()


def _total_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)
