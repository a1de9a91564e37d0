from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from bench.errors import BenchError
from bench.probes import clock
from bench.probes.clock import PhaseClock, count_tokens, time_steps
from bench.technique import Step


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Told:
    """A clock that goes on as it is told to: what else the machine does changes nothing."""

    now = 0

    def perf_counter_ns(self) -> int:
        return self.now


class Reader(list[Step]):
    """Who keeps the steps and takes a second for each, which is nobody's step."""

    def __init__(self, clock: Told) -> None:
        self.clock = clock

    def append(self, step: Step) -> None:
        self.clock.now += 1_000_000_000
        super().append(step)


def test_gaps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(clock, "time", told)

    def steps() -> Iterator[Step]:
        for index in range(5):
            told.now += 10_000_000 * (index + 1)
            yield Step("decode" if index else "prefill", 2, (torch.tensor([1, 2]),), {"drafted": 3})
        told.now += 7_000_000  # behind the last step, and no step

    samples = time_steps(steps(), "cpu")
    assert samples.kind == ["prefill", *["decode"] * 4]
    assert samples.tokens == [2] * 5
    assert samples.counts == [{"drafted": 15}]
    assert samples.seconds == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    kept = Reader(told)
    assert clock._time_cpu(steps(), kept) == pytest.approx(samples.seconds)
    assert len(kept) == 5


def test_the_clock_is_the_machines() -> None:
    """Bounds alone: a step is never quicker than its work, and the steps take no longer than all of it."""

    def steps() -> Iterator[Step]:
        for _ in range(5):
            spin(0.01)
            yield Step("train", 1)

    start = time.perf_counter()
    seconds = time_steps(steps(), "cpu").seconds
    assert min(seconds) >= 0.01
    assert sum(seconds) <= time.perf_counter() - start


def test_tokens_are_counted_not_believed() -> None:
    with pytest.raises(BenchError, match="reports 3 tokens, its outputs hold 2"):
        count_tokens(Step("decode", 3, (torch.tensor([1, 2]),)))
    assert count_tokens(Step("train", 7, (torch.tensor(0.5),))) == 7


def test_an_error_inside_leaves_the_collector_on() -> None:
    import gc

    def broken() -> Iterator[Step]:
        yield Step("decode", 1, (torch.tensor([1]),))
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        time_steps(broken(), "cpu")
    assert gc.isenabled()


def test_phases_add_up() -> None:
    phases = PhaseClock("cpu")
    start = time.perf_counter()
    for _ in range(3):
        with phases("draft"):
            spin(0.004)
        with phases("verify"):
            spin(0.008)
    taken = time.perf_counter() - start
    assert [len(each) for each in phases.seconds.values()] == [3, 3]
    assert min(phases.seconds["draft"]) >= 0.004
    assert min(phases.seconds["verify"]) >= 0.008
    assert sum(map(sum, phases.seconds.values())) <= taken


def test_a_phase_inside_another_counts_for_itself_alone() -> None:
    class ToldPhases(PhaseClock):
        now = 0.0

        def _now(self) -> float:
            return self.now

    phases = ToldPhases("cpu")
    for _ in range(2):
        with phases("prefill"):
            phases.now += 4
            with phases("choose"):
                phases.now += 1
                with phases("sort"):
                    phases.now += 8
                phases.now += 1
            with phases("choose"):
                phases.now += 16
            phases.now += 32
    assert phases.seconds == {"prefill": [36.0, 36.0], "choose": [2.0, 16.0] * 2, "sort": [8.0, 8.0]}


@pytest.mark.gpu
def test_events_time_the_device_not_the_launch() -> None:
    x = torch.randn(4096, 4096, device="cuda")

    def work() -> Iterator[Step]:
        for _ in range(4):
            y = x
            for _ in range(20):
                y = y @ x
            yield Step("train", 1, (y.sum().detach(),))

    time_steps(work(), "cuda")
    samples = time_steps(work(), "cuda")
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in work():
        pass
    torch.cuda.synchronize()
    assert sum(samples.seconds) == pytest.approx(time.perf_counter() - start, rel=0.2)
