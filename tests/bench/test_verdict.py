from __future__ import annotations

import math

import numpy as np
import pytest

from bench import stats, verdict
from bench.metrics import GLOSSARY

TIME, NLL, ACCURACY = GLOSSARY["tpot"], GLOSSARY["nll"], GLOSSARY["next_token_accuracy"]


def judge(metric: object, arm: list[float], base: list[float], unit: stats.Unit = "rounds") -> verdict.Judgement:
    estimate = stats.compare(metric, dict(enumerate(arm)), dict(enumerate(base)), unit)
    return verdict.judge_all(metric, {"arm": estimate})["arm"]


ONE = [1.0, 1.01, 0.99, 1.005, 0.995]


@pytest.mark.parametrize(
    ("factor", "expected"), [(0.9, "BETTER"), (1.1, "WORSE"), (1.0, "SAME"), (1.015, "INCONCLUSIVE")]
)
def test_times(factor: float, expected: str) -> None:
    found = judge(TIME, [factor * x for x in [1.0, 0.99, 1.01, 1.0, 1.0]], ONE)
    assert found.verdict == expected, found


def test_higher_is_better_where_it_is() -> None:
    base = [0.5, 0.6, 0.4, 0.5, 0.55]
    assert judge(ACCURACY, [x + 0.1 for x in base], base).verdict == "BETTER"
    assert judge(NLL, [x + 0.1 for x in base], base).verdict == "WORSE"


def test_same_is_looked_for_first() -> None:
    # a difference that is certain and does not matter
    assert judge(TIME, [1.01 * x for x in ONE], [x * (1 + 1e-4 * i) for i, x in enumerate(ONE)]).verdict == "SAME"


def test_the_bound_nearest_to_none_is_said() -> None:
    estimate = stats.compare(TIME, dict(enumerate([0.8, 0.81, 0.79, 0.8, 0.82])), dict(enumerate(ONE)))
    found = verdict.judge_all(TIME, {"arm": estimate})["arm"]
    assert found.reason == f"at least x{estimate.high:.3f}"


@pytest.mark.parametrize("units", [1, 2, 4])
def test_nothing_is_judged_below_five_units(units: int) -> None:
    found = judge(TIME, [0.5] * units, ONE[:units])
    assert (found.verdict, found.reason) == ("INCONCLUSIVE", f"{stats.counted(units, 'rounds')}, at least 5 are needed")


def test_a_constant_clock_is_suspicious() -> None:
    assert "suspicious" in judge(TIME, [2.0] * 5, [4.0] * 5).reason


def test_exact_metrics_are_judged_by_their_margin() -> None:
    held = GLOSSARY["kv_cache_bytes"]
    assert judge(held, [25.0], [100.0]) == verdict.Judgement(verdict.Verdict.BETTER, "exact")
    assert judge(held, [100.5], [100.0]).verdict == "SAME"


def test_what_would_settle_it_does() -> None:
    rng = np.random.default_rng(1)
    base, arm = np.exp(rng.normal(0, 0.08, 6)), 1.03 * np.exp(rng.normal(0, 0.08, 6))
    estimate = stats.compare(TIME, dict(enumerate(arm)), dict(enumerate(base)))
    found = verdict.judge_all(TIME, {"arm": estimate})["arm"]
    assert found.verdict == "INCONCLUSIVE"
    needed = int(found.reason.split("about ")[1].split()[0])
    reach = max(abs(math.log(estimate.change)), math.log(1.03) - abs(math.log(estimate.change)))
    assert stats.half_width(estimate.spread, needed) < reach <= stats.half_width(estimate.spread, needed - 1)


def test_holm_by_hand() -> None:
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a"}  # .01 <= .05/3, .03 > .05/2
    assert stats.holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert stats.holm({"a": 0.06}) == set()
    assert stats.holm({}) == set()


RIGHT = GLOSSARY["preference_accuracy"]


def pairs(gained: int, lost: int, count: int) -> verdict.Judgement:
    arm = [1.0] * gained + [0.0] * (count - gained)
    base = [0.0] * gained + [1.0] * lost + [0.0] * (count - gained - lost)
    return judge(RIGHT, arm, base, "items")


def test_right_or_wrong_items() -> None:
    assert pairs(20, 2, 100).verdict == "BETTER"
    assert pairs(2, 20, 100).verdict == "WORSE"
    assert pairs(9, 0, 19).reason == "19 items, at least 20 are needed"
    assert pairs(4, 0, 60).reason == "only 4 of 60 items differ"
    assert pairs(1, 1, 1500).verdict == "SAME"


def test_no_disagreement_on_few_items_is_no_proof() -> None:
    found = pairs(0, 0, 24)
    assert found.verdict == "INCONCLUSIVE", "one in ten may differ, and 24 items all agree by chance"
    needed = int(found.reason.split("about ")[1].split()[0])
    assert pairs(0, 0, needed).verdict == "SAME"
    assert pairs(0, 0, needed - 1).verdict == "INCONCLUSIVE"


def test_items_without_any_difference() -> None:
    base = [2.0 + 0.1 * i for i in range(60)]
    assert judge(NLL, base, base, "items") == verdict.Judgement(verdict.Verdict.SAME, "alike on all 60 items")
    few = judge(NLL, base[:12], base[:12], "items")
    assert few.verdict == "INCONCLUSIVE", "one in ten may differ"
    assert few.reason == "alike on all 12 items, 59 would show that fewer than 1 in 20 differ"


def test_lopsided_items_are_not_judged() -> None:
    base = [2.0 + 0.1 * i for i in range(12)]
    found = judge(NLL, [*base[:-1], base[-1] + 3.0], base, "items")
    assert found.verdict == "INCONCLUSIVE"
    assert "lopsided" in found.reason


def test_an_exact_metric_that_varies_is_judged_as_a_sampled_one() -> None:
    held = GLOSSARY["kv_cache_bytes"]
    found = judge(held, [50.0, 150.0, 49.0, 155.0, 52.0], [100.0] * 5)
    assert found.verdict == "INCONCLUSIVE"
