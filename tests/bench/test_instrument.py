"""Is the tool right as often as it claims? Simulated comparisons through its own stopping rule and verdicts.

For every rule there is a test with the rule broken on purpose: it shows that the bar would be missed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from fabricated import ended
from scipy.stats import beta
from simulated import rounds

from bench import outcome, stats, units, verdict
from bench.metrics import GLOSSARY

TIME, NLL, RIGHT = GLOSSARY["time_per_step"], GLOSSARY["nll"], GLOSSARY["preference_accuracy"]
PRIMARY = ("time_per_step", "peak_memory")


def at_most(count: int, of: int, confidence: float = 0.99) -> float:
    """Upper bound of a share that was seen `count` times (Clopper and Pearson 1934)."""
    return float(beta.ppf(confidence, count + 1, of - count)) if count < of else 1.0


def compare(
    rng: np.random.Generator, factors: Sequence[float], replicates: int | None, **noise: float
) -> dict[str, dict[str, str]]:
    """One report: arm -> metric -> verdict. No number of replicates: the run extends itself."""
    arms = {"base": 1.0, **{f"arm{number}": factor for number, factor in enumerate(factors)}}
    looks = (replicates,) if replicates else stats.LOOKED_AT
    done: dict[str, list[dict[str, object]]] = {arm: [] for arm in arms}
    for look in looks:
        for arm, factor in arms.items():
            more = rounds(rng, look - len(done[arm]), factor, **noise)
            done[arm] += [{**part, "round": len(done[arm]) + place} for place, part in enumerate(more)]
        records = [ended(arm, rounds=parts, looks=[] if replicates else looks) for arm, parts in done.items()]
        if look != looks[-1] and outcome.settled(records):
            break
    rows = {row.arm: row for row in outcome.rows(records)["c"]}
    return {arm: {m: rows[arm].judgements[m].verdict.value for m in PRIMARY} for arm in arms if arm != "base"}


def tally(
    comparisons: int, factors: Sequence[float], replicates: int | None, **noise: float
) -> dict[str, Counter[str]]:
    """Metric -> how many reports hold the verdict for any of their arms."""
    rng = np.random.default_rng(20)
    seen: dict[str, Counter[str]] = {metric: Counter() for metric in PRIMARY}
    for _ in range(comparisons):
        found = compare(rng, factors, replicates, **noise)
        for metric in PRIMARY:
            said = {verdicts[metric] for verdicts in found.values()}
            seen[metric].update({*said, *(["false"] if said & {"BETTER", "WORSE"} else [])})
    return seen


@pytest.mark.parametrize(("replicates", "comparisons"), [(5, 5000), (10, 5000), (None, 3000)])
def test_equal_arms_are_called_different_in_at_most_five_percent(replicates: int | None, comparisons: int) -> None:
    for metric, said in tally(comparisons, [1.0], replicates).items():
        assert said["false"] / comparisons <= 0.05, (metric, said)
        assert at_most(said["false"], comparisons) <= 0.06, (metric, said)


def test_the_same_holds_for_a_report_of_several_arms_and_would_not_without_holm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tally(1000, [1.0] * 4, 5)["time_per_step"]["false"] / 1000 <= 0.05
    monkeypatch.setattr(stats, "holm", lambda p_values, alpha: {name for name, p in p_values.items() if p <= alpha})
    assert tally(400, [1.0] * 4, 5)["time_per_step"]["false"] / 400 > 0.08


def test_extending_until_it_is_significant_would_be_wrong_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "LOOK_CONFIDENCE", 0.95)
    monkeypatch.setattr(stats, "LOOKED_AT", tuple(range(5, 21)))
    reports = 300
    assert tally(reports, [1.0], None)["time_per_step"]["false"] / reports > 0.08


@pytest.mark.parametrize("replicates", [10, None])
def test_equal_arms_are_called_the_same_where_the_machine_is_quiet(replicates: int | None) -> None:
    noise = {"process": 0.013, "within": 0.02}
    rng = np.random.default_rng(0)
    levels = units.of([ended("arm", rounds=rounds(rng, 2000, 1.0, **noise))])["time_per_step"][0]
    spread = math.sqrt(2 * stats.variance([math.log(level) for level in levels.values()]))
    assert 0.019 <= spread <= 0.021, "2 % between the arms of a round"
    for metric, said in tally(1000, [1.0], replicates, **noise).items():
        assert said["SAME"] >= 800, metric


@pytest.mark.parametrize("replicates", [10, None])
@pytest.mark.parametrize(("planted", "least"), [(1.10, 0.90), (1.05, 0.80)])
def test_what_is_planted_is_found(planted: float, least: float, replicates: int | None) -> None:
    for metric, said in tally(1000, [planted], replicates).items():
        assert said["WORSE"] / 1000 >= least, (metric, said)
        assert said["BETTER"] == 0


def test_pooled_steps_and_a_percentile_bootstrap_would_miss_the_bar() -> None:
    """The naive way: the steps of all processes are the units, their medians' ratio is bootstrapped."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        arm, base = (
            np.array([s for part in rounds(rng, 5, 1.0) for b in part["bursts"] for s in b["samples"]["seconds"]])
            for _ in range(2)
        )
        draws = rng.integers(0, len(arm), (2, 300, len(arm)))
        ratios = np.median(arm[draws[0]], 1) / np.median(base[draws[1]], 1)
        low, high = np.percentile(ratios, [2.5, 97.5])
        wrong += not low <= 1 <= high
    assert wrong / 300 > 0.15


DRAWS = 4000


@pytest.mark.parametrize("count", [*range(5, 21), 30, 50, 100])
def test_intervals_over_rounds_cover_at_every_number_that_is_accepted(count: int) -> None:
    rng = np.random.default_rng(count)
    base, arm = (np.exp(rng.normal(0, 0.03, (DRAWS, count))) for _ in range(2))
    arm *= 1.05
    hits = 0
    for a, b in zip(arm.tolist(), base.tolist(), strict=True):
        estimate = stats.compare(TIME, dict(enumerate(a)), dict(enumerate(b)))
        assert not estimate.refusal
        hits += estimate.low <= 1.05 <= estimate.high
    assert 0.93 <= hits / DRAWS <= 0.97


@pytest.mark.parametrize("count", [5, 10, 20])
def test_intervals_cover_from_raw_steps_on(count: int) -> None:
    rng = np.random.default_rng(count)
    hits, draws = 0, 4000
    for _ in range(draws):
        arm, base = (units.of([ended(name, rounds=rounds(rng, count, f))]) for name, f in (("a", 1.05), ("base", 1.0)))
        estimate = stats.compare(TIME, arm["time_per_step"][0], base["time_per_step"][0])
        hits += estimate.low <= 1.05 <= estimate.high
    assert 0.93 <= hits / draws <= 0.97


@pytest.mark.parametrize("unit", ["rounds", "items", "seeds"])
def test_fewer_units_are_refused(unit: stats.Unit) -> None:
    rng = np.random.default_rng(0)
    for count in range(1, stats.FEWEST[unit] + 1):
        arm, base = (dict(enumerate(rng.normal(level, 0.01, count).tolist())) for level in (5.0, 3.0))
        estimate = stats.compare(NLL, arm, base, unit)
        found = verdict.judge_all(NLL, {"arm": estimate})["arm"]
        accepted = count >= stats.FEWEST[unit]
        assert bool(estimate.refusal) is not accepted
        assert found.verdict == ("WORSE" if accepted else "INCONCLUSIVE"), (count, found)


SHAPES: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "normal": lambda rng, size: rng.normal(0, 1, size),
    "heavy tails": lambda rng, size: rng.standard_t(4, size),
    "skewed": lambda rng, size: rng.gamma(4, 1, size) - 4,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [10, 12, 16, 20, 30, 50, 100, 200])
def test_intervals_over_items_cover(count: int, shape: str) -> None:
    """Paired differences of a real-valued metric around a true one of .1."""
    rng = np.random.default_rng(count)
    hits = 0
    for row in (0.1 + 0.2 * SHAPES[shape](rng, (DRAWS, count))).tolist():
        estimate = stats.compare(NLL, dict(enumerate(row)), dict.fromkeys(range(count), 0.0), "items")
        hits += estimate.low <= 0.1 <= estimate.high
    assert 0.93 <= hits / DRAWS <= 0.97


LOPSIDED: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "exponential": (lambda rng, size: rng.exponential(1, size), 1.0),
    "log-normal": (lambda rng, size: rng.lognormal(0, 0.5, size), math.exp(0.125)),
    "one in ten differs": (lambda rng, size: (rng.random(size) < 0.1) * rng.random(size), 0.05),
    "one in twenty differs": (lambda rng, size: (rng.random(size) < 0.05) * rng.random(size), 0.025),
    "one in three differs": (lambda rng, size: (rng.random(size) < 1 / 3) * rng.random(size), 1 / 6),
}


def missed(shape: str, count: int) -> tuple[float, float]:
    """Shares of all draws whose interval misses: those a verdict may rest on, and all."""
    rng = np.random.default_rng(count)
    draw, truth = LOPSIDED[shape]
    accepted = everything = 0
    for row in draw(rng, (DRAWS, count)).tolist():
        estimate = stats.compare(NLL, dict(enumerate(row)), dict.fromkeys(range(count), 0.0), "items")
        miss = not estimate.low <= truth <= estimate.high
        everything += miss
        accepted += miss and not estimate.refusal
    return accepted / DRAWS, everything / DRAWS


@pytest.mark.parametrize("count", [10, 20, 50, 60, 200])
@pytest.mark.parametrize("shape", LOPSIDED)
def test_lopsided_items_are_refused_often_enough(count: int, shape: str) -> None:
    assert missed(shape, count)[0] <= 0.07


def test_they_would_not_be_right_without_the_refusal() -> None:
    accepted, everything = missed("one in ten differs", 20)
    assert everything > 0.15
    assert accepted < 0.02


@pytest.mark.parametrize("difference", [0.0, 0.04])
@pytest.mark.parametrize("disagreement", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("count", [20, 30, 50, 100, 200, 1000])
def test_intervals_over_yes_or_no_items_cover(count: int, disagreement: float, difference: float) -> None:
    """Where fewer than five items disagree on average the interval may only be too wide."""
    rng = np.random.default_rng(count)
    shares = [(disagreement + difference) / 2, (disagreement - difference) / 2, 1 - disagreement]
    hits = false = 0
    drawn = Counter((gained, lost) for gained, lost, _ in rng.multinomial(count, shares, DRAWS).tolist())
    for (gained, lost), times in drawn.items():
        arm = dict(enumerate([1.0] * gained + [0.0] * (count - gained)))
        base = dict(enumerate([0.0] * gained + [1.0] * lost + [0.0] * (count - gained - lost)))
        estimate = stats.compare(RIGHT, arm, base, "items")
        hits += times * (estimate.low <= difference <= estimate.high)
        said = verdict.judge_all(RIGHT, {"arm": estimate})["arm"].verdict
        false += times * (difference == 0 and said in {"BETTER", "WORSE"})
    assert hits / DRAWS >= 0.93
    if count * disagreement >= stats.FEWEST_DIFFERING:
        assert hits / DRAWS <= 0.97
    assert at_most(false, DRAWS) <= 0.07
    assert false / DRAWS <= 0.06


def test_a_t_interval_over_yes_or_no_items_would_miss_the_bar() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for gained, lost, same in rng.multinomial(30, [0.07, 0.03, 0.9], DRAWS).tolist():
        arm = dict(enumerate([1.0] * gained + [-1.0] * lost + [0.0] * same))
        estimate = stats.compare(NLL, arm, dict.fromkeys(arm, 0.0), "items")
        hits += estimate.low <= 0.04 <= estimate.high
    assert hits / DRAWS < 0.93


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8, 12])
def test_seeds_of_training(seeds: int) -> None:
    """Trainings differ by their seed more than items do. With five seeds the interval covers the effect of the
    method; with fewer it covers that of these models, does not cover the method's, and the verdict says so."""
    rng = np.random.default_rng(seeds)
    items, effect, draws = 20, -0.05, 4000
    of_method = of_models = 0
    for _ in range(draws):
        arms: dict[str, list[dict[str, object]]] = {"base": [], "arm": []}
        level = rng.normal(0, 0.02, (2, seeds))
        hard = rng.normal(2.0, 0.3, items)
        for seed in range(seeds):
            for place, (arm, mean) in enumerate((("base", 0.0), ("arm", effect))):
                nll = hard + mean + level[place, seed] + rng.normal(0, 0.03, items)
                arms[arm].append(
                    {
                        "seed": seed,
                        "technique": {"trains": True},
                        "rounds": [],
                        "quality": {"metrics": {"nll": nll.tolist()}},
                    }
                )
        (arm, unit), (base, _) = (units.of(arms[name])["nll"] for name in ("arm", "base"))
        estimate = stats.compare(NLL, arm, base, unit)
        of_method += estimate.low <= effect <= estimate.high
        of_models += estimate.low <= effect + level[1].mean() - level[0].mean() <= estimate.high
    if seeds >= stats.FEWEST["seeds"]:
        assert unit == "seeds"
        assert 0.93 <= of_method / draws <= 0.97
    else:
        assert unit == "items"
        assert 0.93 <= of_models / draws <= 0.97
        assert of_method / draws < 0.80, "these models are not the method"
