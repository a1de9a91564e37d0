from __future__ import annotations

from typing import Any

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
    assert found["tpot"] == {4: pytest.approx(1.3 / 7)}, "all their time over all their tokens"
    assert found["tpot_p50"] == {4: pytest.approx((0.1 + 0.3) / 2)}
    assert found["tpot_p90"] == {4: pytest.approx(0.1 + 0.9 * 0.2)}
    assert found["ttft"] == {4: pytest.approx(0.6)}
    assert found["throughput"] == {4: pytest.approx(9 / 2.5)}


def test_taking_up_what_was_read_stands_in_no_figure() -> None:
    read = burst(True, ("prefill", 0.5, 1), ("resume", 7.0, 0), ("decode", 0.2, 1), ("decode", 0.2, 1))
    alone = burst(True, ("resume", 7.0, 0), ("decode", 0.1, 1), ("decode", 0.1, 1))
    rounds = [{"round": 0, "bursts": [read, alone]}, {"round": 1, "bursts": [alone]}]
    found = units.of([{"seed": 0, "rounds": rounds, "quality": None}])
    assert found["ttft"][0] == {0: 0.5}
    assert found["tpot"][0] == {0: pytest.approx(0.15), 1: pytest.approx(0.1)}
    assert found["throughput"][0] == {0: pytest.approx(5 / 1.1), 1: pytest.approx(10)}


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


def speculated(number: int, slow: float = 1.0) -> dict[str, Any]:
    """A round of two prompts of two kinds: 3 drafted tokens a round, the pieces' times known."""
    samples = {
        "kind": ["prefill", "decode", "decode", "prefill", "decode"],
        "seconds": [0.5, 2.0 * slow, 2.0 * slow, 0.5, 3.0 * slow],
        "tokens": [1, 4, 2, 1, 1],
        "groups": ["chat", "sums"],
        "counts": [
            {"verified": 2, "drafted": 6, "accepted": 4, "tried_1": 2, "accepted_1": 2, "tried_2": 2, "accepted_2": 1}
            | {"tried_3": 1, "accepted_3": 1},
            {"verified": 1, "drafted": 3, "accepted": 0, "tried_1": 1},
        ],
    }
    calls = {"forward": [1.0, 1.0, 9.0], "draft": [0.6, 0.6, 0.1], "verify": [1.2, 1.2, 1.2]}
    return {"round": number, "bursts": [{"used": True, "samples": samples}], "calls": calls}


def test_what_speculation_promises_and_reaches() -> None:
    record = {"seed": 0, "rounds": [speculated(0)], "quality": None, "technique": {"parameters": {"draft_tokens": 3}}}
    found = {name: values[0] for name, (values, _) in units.of([record]).items()}
    assert found["acceptance_rate"] == pytest.approx(4 / 6), "of the six judged, not of the nine drafted"
    assert found["accepted_length"] == pytest.approx(1 + 4 / 3)
    assert found["cost_ratio"] == pytest.approx(0.2), "a third of a draft of three, by the median"
    assert found["verification_cost"] == pytest.approx(1.2)
    assert found["predicted_speedup"] == pytest.approx((7 / 3) / 1.8)
    a = 4 / 6
    assert found["iid_speedup"] == pytest.approx((1 - a**4) / (1 - a) / 1.6), "verification at the cost of one token"
    assert found["tpot"] == pytest.approx(1.0), "all seconds over all tokens, no mean of ratios"
    assert found["prediction_reached"] == pytest.approx(1.8 / (7 / 3) / 1.0)
    assert found["formula_reached"] == pytest.approx(1.0 / ((1 - a**4) / (1 - a) / 1.6))


def test_groups_have_times_and_acceptance_of_their_own() -> None:
    found = units.groups({"rounds": [speculated(0), speculated(1, slow=2.0)]})
    assert found["chat"]["tpot"] == {0: pytest.approx(4 / 6), 1: pytest.approx(8 / 6)}
    assert found["sums"]["tpot"] == {0: pytest.approx(3.0), 1: pytest.approx(6.0)}
    assert found["chat"]["acceptance_rate"][0] == pytest.approx(4 / 5)
    assert found["sums"]["acceptance_rate"][0] == 0.0


def test_prompts_without_kinds_or_continued_together_have_no_groups() -> None:
    plain, together = speculated(0), speculated(1)
    del plain["bursts"][0]["samples"]["groups"]
    together["bursts"][0]["samples"]["groups"] = ["chat"] * 4
    assert units.groups({"rounds": [plain, together]}) == {}


def test_choosing_is_counted_against_the_rest_of_the_prefill() -> None:
    def of(phases: dict[str, list[float]]) -> Any:
        profile = {"seconds": [1.0, 0.1], "tokens": [1, 1], "phases": phases}
        part = {"round": 3, "bursts": [], "profile": profile}
        return units.of([{"rounds": [part], "quality": None, "technique": {}}]).get("choosing_cost")

    assert of({"prefill": [0.8], "choose": [0.01] * 4, "forward": [0.1]}) == ({3: pytest.approx(0.05)}, "rounds")
    assert of({"prefill": [0.8], "forward": [0.1]}) is None


def test_attention_is_counted_per_decoding_step() -> None:
    profile = {"kind": ["prefill", "decode", "decode"], "seconds": [1.0, 0.1, 0.1], "tokens": [1, 1, 1]}
    phases = {"prefill": [1.0], "forward": [0.06, 0.07], "attention": [0.01, 0.02, 0.01, 0.03]}
    part = {"round": 3, "bursts": [], "profile": {**profile, "phases": phases}}
    found = units.of([{"rounds": [part], "quality": None, "technique": {}}])
    assert found["attention_time"] == ({3: pytest.approx(0.035)}, "rounds")


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_size_of_a_file_has_no_items(seeds: int) -> None:
    records = [trained(seed, 1.0, 2.0) for seed in range(seeds)]
    for record in records:
        record["quality"]["metrics"]["adapter_bytes"] = [800.0]
    found = units.of(records)
    assert found["adapter_bytes"] == (dict.fromkeys(range(seeds), 800.0), "seeds")
    assert found["nll"][1] == ("seeds" if seeds == 5 else "items")


def test_what_the_driver_counts_is_a_figure_where_it_tells() -> None:
    def memory(process: Any) -> dict[str, tuple[dict[int, float], str]]:
        held = {"peak": 10, "reserved": 12, "process": process, "named": 8, "largest": {}}
        return units.of([{"seed": 0, "rounds": [{"round": 0, "bursts": [], "memory": held}], "quality": None}])

    assert memory(14)["process_memory"] == ({0: 14.0}, "rounds")
    for unknown in (None, {"peak": 10}):  # a CPU's process says more than one number
        assert "process_memory" not in memory(unknown)
