from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench import machine
from bench.probes import load

BEFORE = load.Reading(
    wall=10.0,
    busy=100.0,
    stolen=5.0,
    ours=50.0,
    pressure={"cpu": 1.0, "memory": 0.0, "io": 7.0},
    threads={1: 9.0, 2: 9.0},
)
AFTER = replace(BEFORE, wall=12.0, busy=104.0, ours=54.0, threads={1: 11.0, 2: 11.0})
"""Two seconds in which two threads of ours had two cores for themselves."""


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2.0)


def pressure(kind: str, seconds: float) -> dict[str, float]:
    return {**BEFORE.pressure, kind: BEFORE.pressure[kind] + seconds}


def test_our_own_work_is_no_disturbance() -> None:
    assert load.between(BEFORE, AFTER) == {
        "others": 0.0,
        "stolen": 0.0,
        "pressure": {"cpu": 0.0, "memory": 0.0, "io": 0.0},
        "threads": 2,
        "gpu_strangers": 0,
        "disturbed": False,
        "by": [],
        "reason": "",
    }


@pytest.mark.parametrize(
    ("after", "cause", "field", "value"),
    [
        (replace(AFTER, ours=52.0), "others", "others", 1.0),
        (replace(AFTER, stolen=6.0), "stolen", "stolen", 0.5),
        (replace(AFTER, gpu_strangers=1), "gpu", "gpu_strangers", 1),
        (replace(AFTER, pressure=pressure("cpu", 0.4)), "cpu pressure", "pressure", {"cpu": 0.2, "memory": 0, "io": 0}),
        (
            replace(AFTER, pressure=pressure("memory", 0.4)),
            "memory pressure",
            "pressure",
            {"cpu": 0, "memory": 0.2, "io": 0},
        ),
    ],
)
def test_anothers_is_and_each_cause_is_named(after: load.Reading, cause: str, field: str, value: object) -> None:
    around = load.between(BEFORE, after)
    assert around["disturbed"] is True
    assert around["by"] == [cause]
    assert around[field] == value


def test_who_left_the_gpu_during_the_burst_was_there() -> None:
    assert load.between(replace(BEFORE, gpu_strangers=2), AFTER)["gpu_strangers"] == 2


def test_waiting_for_the_disk_is_kept_and_not_judged() -> None:
    around = load.between(BEFORE, replace(AFTER, pressure=pressure("io", 1.0)))
    assert around["pressure"]["io"] == 0.5
    assert around["disturbed"] is False


def test_the_pressure_of_an_undisturbed_burst_is_allowed() -> None:
    # most seen in one second of two threads on two cores that had the machine for themselves
    assert load.between(BEFORE, replace(AFTER, pressure=pressure("cpu", 2 * 0.026)))["disturbed"] is False


def test_more_threads_of_ours_than_cores_make_a_pressure_that_is_not_judged() -> None:
    crowd = replace(AFTER, threads={1: 10.0, 2: 10.0, 3: 1.0}, pressure=pressure("cpu", 1.0))
    around = load.between(BEFORE, crowd)
    assert around["threads"] == 3
    assert around["pressure"]["cpu"] == 0.5
    assert around["disturbed"] is False
    assert "3 threads of ours share 2 cores" in around["reason"]
    assert load.between(BEFORE, replace(crowd, ours=52.0))["by"] == ["others"], "the rest is judged all the same"


def test_a_tick_more_or_less_in_a_short_burst_is_no_disturbance() -> None:
    short = replace(BEFORE, wall=10.05, busy=100.05, ours=50.02)
    assert load.between(BEFORE, short)["others"] == pytest.approx(0.6)
    assert load.between(BEFORE, short)["disturbed"] is False


def test_unknown_is_none_with_a_reason() -> None:
    assert load.between(None, None)["disturbed"] is None
    assert load.between(None, None)["reason"]
    silent = load.between(replace(BEFORE, pressure={}), replace(AFTER, pressure={}))
    assert silent["pressure"] == {"cpu": None, "memory": None, "io": None}
    assert silent["disturbed"] is False
    assert "pressure" in silent["reason"]
    driver = load.between(replace(BEFORE, gpu_strangers=None), replace(AFTER, gpu_strangers=None))
    assert driver["gpu_strangers"] is None
    assert "driver" in driver["reason"]


def test_strangers_on_the_gpu_are_counted_beyond_our_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception): ...

    def lost(handle: str) -> list[str]:
        raise NVMLError("GPU is lost")

    driver = SimpleNamespace(NVMLError=NVMLError, nvmlDeviceGetComputeRunningProcesses=lambda handle: ["a", "b", "c"])
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(machine, "gpu_handle", lambda: "handle")
    assert load.read([1, 2], gpu=True).gpu_strangers == 1
    assert load.read([1, 2, 3, 4], gpu=True).gpu_strangers == 0
    assert load.read([1, 2]).gpu_strangers == 0
    monkeypatch.setattr(driver, "nvmlDeviceGetComputeRunningProcesses", lost)
    assert load.read([1, 2], gpu=True).gpu_strangers is None


def test_a_kernel_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.read_text
    refused = "/proc/pressure"

    def without(self: Path) -> str:
        if self.is_relative_to(refused):
            raise OSError(95, "Operation not supported")
        return whole(self)

    monkeypatch.setattr(Path, "read_text", without)
    assert load.read([]).pressure == {"cpu": None, "memory": None, "io": None}
    refused = "/proc/stat"
    assert load.read([]) is None


def test_a_busy_loop_is_seen_unless_it_is_ours() -> None:
    """Judged by the CPU time that the loop got: beside others it gets less of a core."""
    loop = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
    try:
        used = psutil.Process(loop.pid).cpu_times
        while not used().user:
            time.sleep(0.01)
        start, before = used().user, (load.read([]), load.read([loop.pid]))
        while used().user < start + 0.8:
            time.sleep(0.1)
        after = load.read([]), load.read([loop.pid])
    finally:
        loop.kill()
        loop.wait()
    foreign, own = (load.between(first, last) for first, last in zip(before, after, strict=True))
    assert foreign["disturbed"]
    assert "others" in foreign["by"]
    wall = after[0].wall - before[0].wall
    assert (foreign["others"] - own["others"]) * wall > 0.7
    assert after[1].threads[loop.pid] - before[1].threads[loop.pid] > 0.7
    assert loop.pid not in after[0].threads
