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


def test_few_or_no_units() -> None:
    assert stats.compare(TIME, {}, {0: 1.0}) is None
    assert stats.compare(TIME, {0: 2.0}, {0: 1.0}).low is None
    assert "no such figure" in stats.compare(TIME, {0: 2.0}, {}).reason
    assert "zero" in stats.compare(TIME, {0: 0.0, 1: 1.0}, {0: 1.0, 1: 1.0}).reason
    assert stats.compare(TIME, {0: 2.0}, None).change is None


def test_the_score_interval_is_what_the_score_test_accepts() -> None:
    """Against the definition: the likelihood is maximised numerically under the difference that is tested."""
    gained, lost, count = 7, 2, 31

    def z(delta: float) -> float:
        share = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)[1:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = 1 - 2 * share - delta
            fit = gained * np.log(share + delta) + lost * np.log(share) + (count - gained - lost) * np.log(rest)
        best = share[np.nanargmax(fit)]
        return float((gained - lost - count * delta) / math.sqrt(count * (2 * best + delta - delta**2)))

    low, high = stats.score_interval(gained, lost, count)
    assert z(low) == pytest.approx(1.959964, abs=2e-3)
    assert z(high) == pytest.approx(-1.959964, abs=2e-3)
    assert stats.score_interval(lost, gained, count) == pytest.approx((-high, -low)), "it knows no direction"


def test_p_value_and_score_interval_agree() -> None:
    for gained in range(12):
        low, _ = stats.score_interval(gained, 3, 40)
        assert (low > 0) == (gained > 3 and stats.mcnemar(gained, 3) < 0.05)


def test_skewness() -> None:
    assert stats.skewness([1.0, 2.0, 3.0]) == pytest.approx(0)
    assert stats.skewness([0.0] * 9 + [1.0]) == pytest.approx((1 - 2 * 0.1) / math.sqrt(0.1 * 0.9))
    assert stats.skewness([2.0, 2.0]) == 0


def test_two_runs_by_welch() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(3)
    a, b = np.exp(rng.normal(0, 0.02, 6)), np.exp(rng.normal(0.05, 0.05, 9))
    found = stats.compare_runs(TIME, dict(enumerate(a)), dict(enumerate(b)), "rounds")
    expected = ttest_ind(np.log(b), np.log(a), equal_var=False)
    bounds = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(bounds.low), math.exp(bounds.high)))
    assert found.p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_exact_figure_needs_no_second_one(seeds: int) -> None:
    size = GLOSSARY["adapter_bytes"]
    found = stats.compare(size, dict.fromkeys(range(seeds), 700.0), dict.fromkeys(range(seeds), 900.0), "seeds")
    assert (found.change, found.low, found.high) == pytest.approx((7 / 9,) * 3)
    assert found.low == found.high
    assert not found.reason
    assert not found.refusal
    varied = stats.compare(size, {0: 700.0, 1: 710.0}, {0: 900.0, 1: 900.0}, "seeds")
    assert varied.low < varied.high, "it was not as exact as declared"


def test_shares_that_never_move_have_no_interval() -> None:
    """None right, or all, under every seed: a spread of 0 would look like perfect precision."""
    accuracy = GLOSSARY["task_accuracy"]
    for share in (0.0, 0.5, 1.0):
        shares = dict.fromkeys(range(5), share)
        found = stats.compare(accuracy, shares, shares, "seeds")
        assert (found.change, found.low, found.high) == (0, None, None)
        assert found.reason == found.refusal == "alike under all 5 seeds"
    moved = stats.compare(accuracy, {**dict.fromkeys(range(4), 0.5), 4: 0.75}, dict.fromkeys(range(5), 0.5), "seeds")
    assert moved.low < 0 < moved.high
    items = stats.compare(accuracy, dict.fromkeys(range(24), 0.0), dict.fromkeys(range(24), 0.0), "items")
    assert items.high - items.low > 0.2, "24 items at the floor do not show that arms are alike"


def test_one_is_singular() -> None:
    assert (stats.counted(1, "seeds"), stats.counted(0, "items"), stats.counted(2, "rounds")) == (
        "1 seed",
        "0 items",
        "2 rounds",
    )


def test_half_an_interval_needs_two_units() -> None:
    assert stats.half_interval([0.3]) is None
    # t with 1 degree of freedom
    assert stats.half_interval([0.0, 1.0]) == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-5)
