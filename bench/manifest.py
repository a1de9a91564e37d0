"""What a run ran on: device, versions, commit, settings that change figures. No host, no user, no environment dump."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench
from bench import machine
from bench.errors import UsageError

ROOT = Path(bench.__file__).resolve().parent.parent
CODE = ("bench", "techniques", "benchmarks", "configs", "pyproject.toml", "constraints.txt")
PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "numpy", "tokenizers"),
    *("gguf", "scipy", "triton", "trl"),
)
VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE", "OMP_WAIT_POLICY"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "OPENBLAS_NUM_THREADS"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_CONF"),
    *("GLIBC_TUNABLES", "PYTHONMALLOC", "THP_MEM_ALLOC_ENABLE"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"),
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"),
)
"""Environment variables that change timings or memory: these are kept where they are set, no others."""
CHANGING = (
    *("argv", "cpu.clocks.frequency_mhz"),
    *("gpu.sm_clock_mhz", "gpu.memory_clock_mhz", "gpu.processes", "gpu.reasons"),
)
"""What may differ between two moments of one environment."""


def collect(device: str, dtype: str, argv: tuple[str, ...] = ()) -> dict[str, Any]:
    """The environment of a run, for its manifest and for every record.

    Args:
        argv: the command line of the run.
    """
    import torch

    facts: dict[str, Any] = {
        "device": {"kind": device, "name": device_name(device), "dtype": dtype},
        "cpu": {
            **machine.cpu_facts(),
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
        },
        "versions": {"python": platform.python_version(), "bench": bench.__version__, **_versions()},
        "code": commit(),
        "torch": torch_facts(),
        "variables": variables(),
        "hub_kernels": False,
        "system": platform.system(),
        "kernel": platform.release(),
        "argv": list(argv),
    }
    if device == "cuda":
        facts["gpu"] = machine.gpu_facts()
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
    return "bfloat16" if machine.cpu_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def device_name(device: str) -> str:
    """What titles and folders call the device."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    units = machine.vector_units()
    return f"{machine.cpu_name()}{f' ({units})' if units else ''}, {os.cpu_count()} cores"


def torch_facts() -> dict[str, Any]:
    """How torch was built and set: libraries, precision, which attention kernels it may choose from."""
    import torch
    from torch import backends

    no_cuda = "torch is built without CUDA"
    return machine.ask(
        {
            "cuda": (lambda: torch.version.cuda, no_cuda),
            "cudnn": (backends.cudnn.version, no_cuda),
            "cudnn_benchmark": (lambda: backends.cudnn.benchmark, ""),
            "matmul_precision": (torch.get_float32_matmul_precision, ""),
            "matmul_tf32": (lambda: backends.cuda.matmul.allow_tf32, ""),
            "cudnn_tf32": (lambda: backends.cudnn.allow_tf32, ""),
            "bf16_reduction": (lambda: bool(backends.cuda.matmul.allow_bf16_reduced_precision_reduction), ""),
            "deterministic": (torch.are_deterministic_algorithms_enabled, ""),
            "allocator": (_cuda_allocator, "no CUDA device: memory comes from the C library"),
            "attention_kernels": (_attention_kernels, ""),
            "cpu_capability": (backends.cpu.get_cpu_capability, ""),
            "onednn": (lambda: backends.mkldnn.is_available() and backends.mkldnn.enabled, ""),
            "mkl": (backends.mkl.is_available, ""),
            "openmp": (backends.openmp.is_available, ""),
        },
        RuntimeError,  # the old and the new way to allow TF32 were mixed: torch answers neither
    )


def variables() -> dict[str, str]:
    """Those of `VARIABLES` that are set, and which libraries are preloaded, without their folders."""
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    if preloaded:
        found["LD_PRELOAD"] = " ".join(Path(library).name for library in preloaded)
    return found


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
    found = {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
    return found if None not in found.values() else {**found, "reason": "git knows no commit of this checkout"}


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


def lasting_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The fields in which two environments differ, but for what changes by itself."""
    return [where for where, _, _ in differences(a, b) if not where.startswith(CHANGING)]


def _versions() -> dict[str, str | None]:
    """None: not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cuda_allocator() -> str | None:
    import torch

    return torch.cuda.get_allocator_backend() if torch.cuda.is_available() else None


def _attention_kernels() -> list[str]:
    from torch.backends import cuda

    allowed = {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return [name for name, is_allowed in allowed.items() if is_allowed]
