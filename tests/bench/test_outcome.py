from __future__ import annotations

from typing import Any

import pytest
from fabricated import ended

from bench import outcome
from bench.report import table


def record(arm: str, tpot: float, nll: float, **changes: Any) -> dict[str, Any]:
    samples = {"kind": ["prefill", "decode"], "seconds": [1.0, tpot], "tokens": [1, 1]}
    memory = {"peak": 100, "reserved": None, "named": 80, "largest": {}}
    rounds = [{"round": n, "bursts": [{"used": True, "samples": samples}], "memory": memory} for n in range(5)]
    gates = [{"name": "lossless", "passed": True, "detail": "equal"}]
    quality = {"metrics": {"output_nll": [nll, nll + 1]}, "gates": gates}
    primary = {"quality": "output_nll", "latency": "tpot", "memory": "peak_memory"}
    return ended(arm, **{"rounds": rounds, "quality": quality, "primary": primary, **changes})


def rows(*records: dict[str, Any]) -> dict[str, outcome.Row]:
    return {row.record["arm"]: row for row in outcome.rows(records)["c"]}


def test_changes_against_the_baseline() -> None:
    found = rows(record("base", 0.1, 2.0), record("fast", 0.05, 2.5))
    assert found["base"].is_baseline
    metric, estimate, _ = found["fast"].shown("latency")
    assert (metric.name, estimate.change) == ("tpot", pytest.approx(0.5))
    assert found["fast"].shown("quality")[1].change == pytest.approx(0.5)
    assert table.change(metric, found["base"].shown("latency")[1]) == "baseline"


def test_a_failed_gate_withholds_speed_and_memory_in_every_output() -> None:
    bad = record("bad", 0.01, 2.0)
    bad["quality"]["gates"] = [{"name": "lossless", "passed": False, "detail": "token 3 differs"}]
    comparisons = outcome.rows([record("base", 0.1, 2.0), bad])
    row = comparisons["c"][1]
    assert (row.status, row.shown("latency")[1:]) == ("invalid", (None, "withheld"))
    assert "token 3 differs" in row.reason
    lines = [line for line in table.flat(comparisons) if line["arm"] == "bad"]
    assert {line["metric"]: line["value"] for line in lines if line["metric"] != "output_nll"} == {
        "ttft": None,
        "tpot": None,
        "throughput": None,
        "peak_memory": None,
        "held_memory": None,
    }
    assert next(line for line in lines if line["metric"] == "output_nll")["value"] == 2.5


def test_no_gate_reads_ungated_and_a_failed_cell_keeps_its_reason() -> None:
    free = record("free", 0.1, 2.0)
    free["quality"]["gates"] = []
    broken = record("broken", 0.1, 2.0, status="oom", reason="out of memory", quality=None, rounds=[])
    found = rows(record("base", 0.1, 2.0), free, broken)
    assert found["free"].status == "ungated"
    assert (found["broken"].status, found["broken"].reason) == ("oom", "out of memory")
    assert table.flat({"c": [found["broken"]]})[0]["reason"] == "out of memory"


def test_verdicts_stand_beside_the_primary_metrics() -> None:
    fast = record("fast", 0.05, 2.5)
    for number, part in enumerate(fast["rounds"]):
        wobble = {"kind": ["prefill", "decode"], "seconds": [1.0, 0.05 + 0.001 * number], "tokens": [1, 1]}
        part["bursts"] = [{"used": True, "samples": wobble}]
    found = rows(record("base", 0.1, 2.0), fast)
    assert found["fast"].judgements["tpot"].verdict == "BETTER"
    assert found["fast"].judgements["peak_memory"].verdict == "SAME"
    assert found["fast"].judgements["output_nll"].verdict == "INCONCLUSIVE"
    assert not found["base"].judgements
    bad = {**fast, "quality": {**fast["quality"], "gates": [{"name": "g", "passed": False, "detail": ""}]}}
    assert "tpot" not in rows(record("base", 0.1, 2.0), bad)["fast"].judgements


def test_random_weights_have_no_quality() -> None:
    made_up = record("base", 0.1, 2.0, model={"random": True})
    assert rows(made_up)["base"].shown("quality")[1:] == (None, "not applicable: random weights")
    assert rows(made_up)["base"].shown("latency")[1].value == pytest.approx(0.1)


def test_without_a_baseline_nothing_is_compared() -> None:
    found = rows(record("base", 0.1, 2.0, status="failed"), record("fast", 0.05, 2.5))
    assert found["fast"].shown("latency")[1].change is None


def trained(arm: str, seed: int, *nll: float) -> dict[str, Any]:
    quality = {"metrics": {"output_nll": list(nll)}, "gates": [{"name": "g", "passed": True, "detail": ""}]}
    return record(arm, 0.1, 2.0, seed=seed, quality=quality, technique={"trains": True})


def test_all_seeds_of_an_arm_are_one_row_and_few_of_them_say_so() -> None:
    items = [2.0 + 0.01 * (i % 4) for i in range(12)]
    lower = [value - 0.1 - 0.001 * (i % 3) for i, value in enumerate(items)]
    two = [trained(arm, seed, *values) for arm, values in (("base", items), ("arm", lower)) for seed in (0, 1)]
    row = rows(*two)["arm"]
    assert row.seeds == (0, 1)
    assert row.estimates["output_nll"].unit == "items"
    assert row.judgements["output_nll"].verdict == "BETTER"
    assert row.judgements["output_nll"].reason.endswith("of these 2 trained models, 5 seeds would say more")
    one = rows(*two[::2])["arm"]
    assert "of this trained model" in one.judgements["output_nll"].reason


def test_with_enough_seeds_they_are_the_units() -> None:
    many = [
        trained(arm, seed, *[mean + 0.02 * seed + 0.001 * (seed % 2) * (arm == "arm")] * 3)
        for arm, mean in (("base", 2.0), ("arm", 1.9))
        for seed in range(5)
    ]
    row = rows(*many)["arm"]
    assert (row.estimates["output_nll"].unit, row.estimates["output_nll"].units) == ("seeds", 5)
    assert row.judgements["output_nll"].verdict == "BETTER"
    assert "trained model" not in row.judgements["output_nll"].reason


def test_one_seed_that_fails_shows_in_the_row() -> None:
    failed = trained("arm", 1, 2.0) | {"status": "failed", "reason": "diverged"}
    row = rows(trained("base", 0, 2.0), trained("base", 1, 2.0), trained("arm", 0, 2.0), failed)["arm"]
    assert (row.status, row.reason) == ("failed", "seed 1: diverged")
    assert not row.judgements


def test_nothing_is_compared_with_an_invalid_baseline() -> None:
    wrong = record("base", 0.1, 2.0)
    wrong["quality"]["gates"] = [{"name": "g", "passed": False, "detail": "wrong"}]
    found = rows(wrong, record("fast", 0.05, 2.5))["fast"]
    assert found.shown("latency")[1].change is None
    assert not found.judgements


def test_a_run_that_looked_more_than_once_has_wider_intervals() -> None:
    def wobbling(arm: str, tpot: float, looks: list[int]) -> dict[str, Any]:
        one = record(arm, tpot, 2.0, looks=looks)
        for number, part in enumerate(one["rounds"]):
            seconds = [1.0, tpot * (1 + 0.01 * (number % 3) * (arm == "fast"))]
            part["bursts"] = [
                {"used": True, "samples": {"kind": ["prefill", "decode"], "seconds": seconds, "tokens": [1, 1]}}
            ]
        return one

    once, often = (
        rows(wobbling("base", 0.1, looks), wobbling("fast", 0.09, looks))["fast"].estimates["tpot"]
        for looks in ([], [5, 10, 20])
    )
    assert (once.confidence, often.confidence) == (0.95, 0.98)
    assert often.low < once.low < once.high < often.high
    assert once.change == often.change


def test_settled_is_when_no_round_would_change_a_verdict() -> None:
    base, same, open_ = record("base", 0.1, 2.0), record("same", 0.1, 2.0), record("open", 0.1, 2.0)
    for arm, wobble in ((same, 0.001), (open_, 0.2)):
        for number, part in enumerate(arm["rounds"]):
            seconds = [1.0, 0.1 * (1 + wobble * (-1) ** number)]
            part["bursts"] = [
                {"used": True, "samples": {"kind": ["prefill", "decode"], "seconds": seconds, "tokens": [1, 1]}}
            ]
    assert outcome.settled([base, same]), "quality is open, but rounds add nothing to it"
    assert not outcome.settled([base, same, open_])


def test_what_a_cache_knows_of_the_question_stands_beside_its_arm() -> None:
    def labels(own: list[str], label: str) -> str:
        technique = {"name": "t", "parameters": {}, "labels": own}
        workload = {"name": "w", "parameters": {}, "label": label}
        return rows(record("a", 0.1, 2.0, technique=technique, workload=workload))["a"].labels

    assert labels(["query-aware"], "question behind the eviction") == "query-aware, question behind the eviction"
    assert labels(["query-aware"], "") == "query-aware"
    assert labels([], "question behind the eviction") == ""
