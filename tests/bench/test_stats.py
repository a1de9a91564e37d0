from __future__ import annotations

import math

import numpy as np
import pytest

from bench import stats
from bench.metrics import GLOSSARY

TIME, NLL = GLOSSARY["tpot"], GLOSSARY["nll"]


def test_the_paired_interval_by_hand() -> None:
    base, arm = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 2.0, 1: 4.4, 2: 7.2}
    d = np.log([2.0, 2.2, 1.8])
    half = 4.302652729911275 * d.std(ddof=1) / math.sqrt(3)  # t, 2 degrees of freedom
    estimate = stats.compare(TIME, arm, base)
    assert estimate.change == pytest.approx(math.exp(d.mean()))
    assert (estimate.low, estimate.high) == pytest.approx((math.exp(d.mean() - half), math.exp(d.mean() + half)))
    assert (estimate.value, estimate.units) == (4.4, 3)


def test_differences_where_ratios_mean_nothing() -> None:
    estimate = stats.compare(NLL, {0: 2.5, 1: 3.5}, {0: 2.0, 1: 3.0})
    assert (estimate.change, estimate.low, estimate.high) == pytest.approx((0.5, 0.5, 0.5))
    assert estimate.value == 3.0


def test_units_are_paired_by_number_not_by_place() -> None:
    estimate = stats.compare(TIME, {1: 20.0, 0: 10.0}, {0: 10.0, 1: 20.0, 2: 99.0})
    assert estimate.change == pytest.approx(1.0)
    assert estimate.units == 2


def test_coverage_at_five_rounds() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        base = {i: math.exp(x) for i, x in enumerate(rng.normal(0, 0.03, 5))}
        arm = {i: 1.05 * math.exp(x) for i, x in enumerate(rng.normal(0, 0.03, 5))}
        estimate = stats.compare(TIME, arm, base)
        hits += estimate.low <= 1.05 <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_few_or_no_units() -> None:
    assert stats.compare(TIME, {}, {0: 1.0}) is None
    assert stats.compare(TIME, {0: 2.0}, {0: 1.0}).low is None
    assert "no such figure" in stats.compare(TIME, {0: 2.0}, {}).reason
    assert "zero" in stats.compare(TIME, {0: 0.0, 1: 1.0}, {0: 1.0, 1: 1.0}).reason
    assert stats.compare(TIME, {0: 2.0}, None).change is None


def burst(used: bool, *steps: tuple[str, float, int]) -> dict[str, object]:
    kind, seconds, tokens = zip(*steps, strict=True)
    samples = {"kind": list(kind), "seconds": list(seconds), "tokens": list(tokens)}
    return {"used": used, "samples": samples}


def test_time_units_of_prompts() -> None:
    one = burst(
        True, ("prefill", 0.5, 1), ("decode", 0.3, 3), ("decode", 0.1, 1), ("prefill", 0.7, 1), ("decode", 0.9, 3)
    )
    disturbed = burst(False, ("prefill", 9.0, 1), ("decode", 9.0, 1))
    record = {"rounds": [{"round": 4, "bursts": [disturbed, one], "memory": None}], "quality": None}
    units = stats.units(record)
    # prompts: (0.4 s, 4 tokens) and (0.9 s, 3 tokens)
    assert units["tpot"] == {4: pytest.approx((0.1 + 0.3) / 2)}
    assert units["ttft"] == {4: pytest.approx(0.6)}
    assert units["throughput"] == {4: pytest.approx(9 / 2.5)}


def test_time_units_of_training_and_memory() -> None:
    memory = {"peak": 10, "reserved": None, "named": 8, "largest": {"kv_cache": 3}}
    bursts = [burst(True, ("train", 1.0, 8), ("train", 3.0, 8)), burst(True, ("train", 2.0, 8))]
    record = {
        "rounds": [{"round": 0, "bursts": bursts, "memory": memory}],
        "quality": {"metrics": {"nll": [1.0, None, 3.0]}},
    }
    units = stats.units(record)
    assert units["time_per_step"] == {0: 2.0}
    assert "tpot" not in units
    assert (units["peak_memory"], units["held_memory"], units["kv_cache_bytes"]) == ({0: 10.0}, {0: 8.0}, {0: 3.0})
    assert "reserved_memory" not in units, "unknown is not zero"
    assert units["nll"] == {0: 1.0, 2: 3.0}
