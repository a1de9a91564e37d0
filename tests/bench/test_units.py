from __future__ import annotations

import pytest

from bench import units


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
    found = {name: values for name, (values, _) in units.of([record]).items()}
    # prompts: (0.4 s, 4 tokens) and (0.9 s, 3 tokens)
    assert found["tpot"] == {4: pytest.approx((0.1 + 0.3) / 2)}
    assert found["ttft"] == {4: pytest.approx(0.6)}
    assert found["throughput"] == {4: pytest.approx(9 / 2.5)}


def test_time_units_of_training_and_memory() -> None:
    memory = {"peak": 10, "reserved": None, "named": 8, "largest": {"kv_cache": 3}}
    bursts = [burst(True, ("train", 1.0, 8), ("train", 3.0, 8)), burst(True, ("train", 2.0, 8))]
    record = {
        "rounds": [{"round": 0, "bursts": bursts, "memory": memory}],
        "quality": {"metrics": {"nll": [1.0, None, 3.0]}},
        "seed": 0,
        "technique": {"trains": False},
    }
    found = {name: values for name, (values, _) in units.of([record]).items()}
    assert found["time_per_step"] == {0: 2.0}
    assert "tpot" not in found
    assert (found["peak_memory"], found["held_memory"], found["kv_cache_bytes"]) == ({0: 10.0}, {0: 8.0}, {0: 3.0})
    assert "reserved_memory" not in found, "unknown is not zero"
    assert found["nll"] == {0: 1.0, 2: 3.0}


def trained(seed: int, *nll: float, trains: bool = True) -> dict[str, object]:
    return {"seed": seed, "rounds": [], "quality": {"metrics": {"nll": list(nll)}}, "technique": {"trains": trains}}


def test_seeds_are_the_units_of_training_where_there_are_enough() -> None:
    records = [trained(seed, seed + 1.0, seed + 3.0) for seed in range(5)]
    assert units.of(records)["nll"] == ({0: 2.0, 1: 3.0, 2: 4.0, 3: 5.0, 4: 6.0}, "seeds")
    assert units.of(records[:4])["nll"] == ({0: 2.5, 1: 4.5}, "items"), "few seeds: items, averaged over the seeds"
    fixed = [trained(seed, 1.0, 3.0, trains=False) for seed in range(5)]
    assert units.of(fixed)["nll"] == ({0: 1.0, 1: 3.0}, "items"), "seeds of an untrained model are no units"


def test_items_that_a_seed_lacks_are_left_out() -> None:
    lacking = trained(1, 5.0, float("nan"))
    lacking["quality"] = {"metrics": {"nll": [5.0, None]}}
    assert units.of([trained(0, 1.0, 3.0), lacking])["nll"] == ({0: 3.0}, "items")


def test_only_the_first_seed_is_timed() -> None:
    timed = trained(0, 1.0) | {"rounds": [{"round": 0, "bursts": [burst(True, ("train", 1.0, 8))], "memory": None}]}
    other = trained(1, 1.0) | {"rounds": [{"round": 0, "bursts": [burst(True, ("train", 9.0, 8))], "memory": None}]}
    assert units.of([timed, other])["time_per_step"] == ({0: 1.0}, "rounds")
