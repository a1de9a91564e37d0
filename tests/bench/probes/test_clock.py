from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from bench.errors import BenchError
from bench.probes.clock import PhaseClock, count_tokens, time_steps
from bench.technique import Step


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def steps(cost: float, between: list[float]) -> Iterator[Step]:
    for index in range(5):
        spin(cost)
        between.append(time.perf_counter())
        yield Step("decode" if index else "prefill", 2, (torch.tensor([1, 2]),), {"drafted": 3})


def test_gaps_are_the_steps() -> None:
    samples = time_steps(steps(0.01, []), "cpu")
    assert samples.kind == ["prefill", *["decode"] * 4]
    assert samples.tokens == [2] * 5
    assert samples.counts == [{"drafted": 15}]
    assert min(samples.seconds) == pytest.approx(0.01, rel=0.05)


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
    clock = PhaseClock("cpu")
    for _ in range(20):
        with clock("draft"):
            spin(0.004)
        with clock("verify"):
            spin(0.008)
    assert min(clock.seconds["draft"]) == pytest.approx(0.004, rel=0.1)
    assert min(clock.seconds["verify"]) == pytest.approx(0.008, rel=0.1)


def test_a_phase_inside_another_counts_for_itself_alone() -> None:
    class Told(PhaseClock):
        now = 0.0

        def _now(self) -> float:
            return self.now

    clock = Told("cpu")
    for _ in range(2):
        with clock("prefill"):
            clock.now += 4
            with clock("choose"):
                clock.now += 1
                with clock("sort"):
                    clock.now += 8
                clock.now += 1
            with clock("choose"):
                clock.now += 16
            clock.now += 32
    assert clock.seconds == {"prefill": [36.0, 36.0], "choose": [2.0, 16.0] * 2, "sort": [8.0, 8.0]}


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
