"""What is read of the kernel's files and of the driver, from files and a driver made up here."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import machine, manifest


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "SYS", tmp_path / "sys")
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(sys, "platform", "linux")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_clocks(kernel: Path) -> None:
    scaling = kernel / "sys/devices/system/cpu/cpu0/cpufreq"
    write(scaling / "scaling_governor", "powersave")
    write(scaling / "scaling_cur_freq", "1800000")
    write(scaling / "scaling_max_freq", "3600000")
    write(kernel / "sys/devices/system/cpu/intel_pstate/no_turbo", "1")
    assert machine.clocks() == {
        "governor": "powersave",
        "frequency_mhz": 1800.0,
        "max_mhz": 3600.0,
        "boost": False,
        "reasons": {},
    }
    write(kernel / "sys/devices/system/cpu/cpufreq/boost", "1")
    assert machine.clocks()["boost"] is True


def test_clocks_that_are_hidden_are_unknown_and_say_why(kernel: Path) -> None:
    write(kernel / "proc/cpuinfo", "model name\t: A  CPU\ncpu MHz\t\t: 2596.098\nflags\t\t: fpu avx2")
    clocks = machine.clocks()
    assert clocks["frequency_mhz"] == 2596.098
    assert (clocks["governor"], clocks["max_mhz"], clocks["boost"]) == (None, None, None)
    assert set(clocks["reasons"]) == {"governor", "max_mhz", "boost"}
    assert all(clocks["reasons"].values())
    assert machine.cpu_name() == "A CPU"
    assert machine.cpu_flags() == {"fpu", "avx2"}


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu avx2", "A CPU (AVX2)"),
        ("avx2 avx512f avx512_bf16", "A CPU (AVX-512 BF16)"),
        ("avx512f avx2", "A CPU (AVX-512)"),
        ("fpu", "A CPU"),
    ],
)
def test_cpus_of_one_name_are_told_apart_by_what_they_compute_with(kernel: Path, flags: str, name: str) -> None:
    write(kernel / "proc/cpuinfo", f"model name\t: A  CPU\nflags\t\t: {flags}")
    assert manifest.device_name("cpu") == f"{name}, {os.cpu_count()} cores"


def test_the_tightest_limit_of_the_groups_above_counts(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = kernel / "sys/fs/cgroup"
    write(kernel / "proc/self/cgroup", "0::/pod/box")
    write(mounted / "cgroup.controllers", "cpu memory")
    write(mounted / "pod/cpu.max", "150000 100000")
    write(mounted / "pod/memory.max", "max")
    write(mounted / "pod/box/cpu.max", "max 100000")
    write(mounted / "pod/box/memory.max", "1073741824")
    assert machine.limits() == {"cpus": 1.5, "memory": 1 << 30, "reasons": {}}
    monkeypatch.setattr(machine, "affinity", lambda: 4)
    assert machine.usable_cores() == 1.5
    monkeypatch.setattr(machine, "affinity", lambda: 1)
    assert machine.usable_cores() == 1.0


def test_limits_of_version_1(kernel: Path) -> None:
    mounted = kernel / "sys/fs/cgroup"
    write(kernel / "proc/self/cgroup", "4:memory:/a\n1:cpu,cpuacct:/\n0::/")
    write(mounted / "cpu/cpu.cfs_quota_us", "-1")
    write(mounted / "cpu/cpu.cfs_period_us", "100000")
    write(mounted / "memory/a/memory.limit_in_bytes", "9223372036854771712")
    assert machine.limits() == {"cpus": "max", "memory": "max", "reasons": {}}
    write(mounted / "cpu/cpu.cfs_quota_us", "50000")
    write(mounted / "memory/a/memory.limit_in_bytes", "4096")
    assert machine.limits() == {"cpus": 0.5, "memory": 4096, "reasons": {}}


def test_no_control_group_is_unknown(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = machine.limits()
    assert (limits["cpus"], limits["memory"]) == (None, None)
    assert set(limits["reasons"]) == {"cpus", "memory"}
    monkeypatch.setattr(machine, "affinity", lambda: 3)
    assert machine.usable_cores() == 3.0


def test_gpu_facts_survive_a_driver_that_does_not_say_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class NVMLError(Exception): ...

    def no_power(handle: str) -> int:
        raise NVMLError("Not Supported")

    asked = []
    driver = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetPowerManagementLimit=no_power,
        nvmlDeviceGetClockInfo=lambda handle, kind: {1: 1980, 2: 2619}[kind],
        nvmlDeviceGetMaxClockInfo=lambda handle, kind: 2000,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: ["one"],
    )
    properties = SimpleNamespace(name="GPU", total_memory=1 << 37, major=9, minor=0, uuid="12-34")
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert machine.gpu_facts() == {
        "name": "GPU",
        "memory": 1 << 37,
        "capability": "9.0",
        "driver": "580.1",
        "power_limit_w": None,
        "sm_clock_mhz": 1980,
        "sm_clock_max_mhz": 2000,
        "memory_clock_mhz": 2619,
        "processes": 1,
        "reasons": {"power_limit_w": "Not Supported"},
    }
    assert set(asked) == {"GPU-12-34"}, "the GPU that torch uses, not the driver's first"
