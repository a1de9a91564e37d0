from __future__ import annotations

import math

import numpy as np
import pytest

from bench import stats, verdict
from bench.metrics import GLOSSARY

TIME, NLL, ACCURACY = GLOSSARY["tpot"], GLOSSARY["nll"], GLOSSARY["next_token_accuracy"]


def judge(metric: object, arm: list[float], base: list[float]) -> verdict.Judgement:
    estimate = stats.compare(metric, dict(enumerate(arm)), dict(enumerate(base)))
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
    assert (found.verdict, found.reason) == ("INCONCLUSIVE", f"{units} rounds, at least 5 are needed")


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
    needed = int(found.reason.split()[1])
    reach = max(abs(math.log(estimate.change)), math.log(1.03) - abs(math.log(estimate.change)))
    assert stats.half_width(estimate.spread, needed) < reach <= stats.half_width(estimate.spread, needed - 1)


def test_holm_by_hand() -> None:
    assert stats.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a"}  # .01 <= .05/3, .03 > .05/2
    assert stats.holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert stats.holm({"a": 0.06}) == set()
    assert stats.holm({}) == set()


def simulate(arms: int, rounds: int, planted: float, runs: int, holm: bool = True) -> dict[str, float]:
    """Shares of runs in which any arm got the verdict; 3 % noise per process, shared baseline."""
    rng = np.random.default_rng(7)
    seen = {"BETTER": 0, "WORSE": 0, "any": 0}
    for _ in range(runs):
        base = dict(enumerate(np.exp(rng.normal(0, 0.03, rounds))))
        estimates = {
            str(arm): stats.compare(TIME, dict(enumerate(planted * np.exp(rng.normal(0, 0.03, rounds)))), base)
            for arm in range(arms)
        }
        if holm:
            found = [j.verdict for j in verdict.judge_all(TIME, estimates).values()]
        else:
            found = [verdict.judge_all(TIME, {name: e})[name].verdict for name, e in estimates.items()]
        seen["any"] += any(v in {"BETTER", "WORSE"} for v in found)
        seen["WORSE"] += "WORSE" in found
    return {name: count / runs for name, count in seen.items()}


def test_false_verdicts_stay_within_five_percent_and_would_not_without_holm() -> None:
    assert simulate(arms=1, rounds=5, planted=1.0, runs=2000)["any"] <= 0.06
    assert simulate(arms=6, rounds=5, planted=1.0, runs=1000)["any"] <= 0.06
    assert simulate(arms=6, rounds=5, planted=1.0, runs=1000, holm=False)["any"] > 0.10


def test_a_planted_ten_percent_is_found_at_the_publishable_size() -> None:
    assert simulate(arms=1, rounds=10, planted=1.10, runs=1000)["WORSE"] >= 0.90
