"""The only statistics: from numbers per unit to an interval, and to whether one may lean on it.

Means of paired differences, of logarithms where a metric is compared as a ratio, with Student's t interval; paired
yes/no items with the score interval. Where these intervals are known not to hold what they promise the estimate
carries a refusal, and no verdict rests on it.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from bench.metrics import Metric

K = TypeVar("K", bound=Hashable)
Unit = Literal["rounds", "items", "seeds"]

CONFIDENCE = 0.95
LOOKED_AT = (5, 10, 20)
"""Rounds after which a run that extends itself looks whether all is decided."""
LOOK_CONFIDENCE = 0.98
"""Of the intervals of such a run: three looks at 2 % each are wrong in less than 5 % of runs."""
THE_BASELINE = "this is the baseline"
"""Why an estimate has no change."""
FEWEST: Mapping[Unit, int] = {"rounds": 5, "items": 10, "seeds": 5}
"""Units under which nothing is judged."""
FEWEST_PAIRS = 20
"""The same for items that are only right or wrong."""
FEWEST_DIFFERING = 5
"""Yes/no items that must differ before one arm can be called better: under it the interval is too wide."""
FEWEST_ALIKE = 59
"""Items without any difference before arms count as the same: .95 to the power of 59 is 5 %, so fewer than 1 in 20
items differ, at 95 %."""
SKEWNESS_BOUND = 10
"""Items must number at least this times the squared skewness of their differences: the t interval of a lopsided
sample misses more often than it says."""


@dataclass(frozen=True)
class Estimate:
    """An arm against its baseline on one metric."""

    value: float
    """The arm's own figure, in the metric's unit."""
    change: float | None
    """Ratio to the baseline, or difference from it, as the metric is compared."""
    low: float | None
    high: float | None
    """Bounds of the interval; None under two units."""
    units: int
    reason: str = ""
    """Why there is no change or no interval."""
    unit: Unit = "rounds"
    confidence: float = CONFIDENCE
    spread: float | None = None
    """Standard deviation of the units' differences, on the scale they are averaged on."""
    p: float | None = None
    """Two-sided probability of a change this large where there is none."""
    refusal: str = ""
    """Why no verdict may rest on the interval."""
    differing: int | None = None
    """Yes/no items on which the arms differ."""


def compare(
    metric: Metric,
    arm: Mapping[int, float],
    base: Mapping[int, float] | None,
    unit: Unit = "rounds",
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """An arm's units against the baseline's, paired by unit; None where the arm has none."""
    if not arm:
        return None
    value = centre(metric, arm.values())
    if base is None:
        return Estimate(value, None, None, None, len(arm), THE_BASELINE, unit)
    shared = sorted(set(arm) & set(base))
    if not shared:
        return Estimate(value, None, None, None, 0, "the baseline has no such figure", unit)
    if metric.relative:
        if any(arm[number] <= 0 or base[number] <= 0 for number in shared):
            return Estimate(value, None, None, None, len(shared), "a ratio to zero", unit)
        differences = [math.log(arm[number] / base[number]) for number in shared]
    else:
        differences = [arm[number] - base[number] for number in shared]
    back = math.exp if metric.relative else float
    mean, count = fmean(differences), len(differences)
    if metric.exact and len(set(differences)) == 1:
        change = back(differences[0])
        return Estimate(value, change, change, change, count, "", unit, confidence, 0.0)
    if count < 2:
        refusal = _refusal(differences, unit)
        return Estimate(value, back(mean), None, None, count, "one unit has no interval", unit, refusal=refusal)
    spread = math.sqrt(variance(differences))
    if unit == "items" and metric.binary and set(differences) <= {-1.0, 0.0, 1.0}:
        gained, lost = differences.count(1.0), differences.count(-1.0)
        low, high = score_interval(gained, lost, count, confidence)
        refusal = f"{counted(count, unit)}, at least {FEWEST_PAIRS} are needed" if count < FEWEST_PAIRS else ""
        p = mcnemar(gained, lost)
        return Estimate(value, mean, low, high, count, "", unit, confidence, spread, p, refusal, gained + lost)
    if unit == "seeds" and metric.binary and not spread:
        # shares that never move stand at an edge: a spread of 0 is no precision
        alike = f"alike under all {count} seeds"
        return Estimate(value, back(mean), None, None, count, alike, unit, spread=spread, refusal=alike)
    half = half_width(spread, count, confidence)
    p, refusal = t_tail(mean, spread, count), _refusal(differences, unit)
    return Estimate(
        value, back(mean), back(mean - half), back(mean + half), count, "", unit, confidence, spread, p, refusal
    )


def counted(count: int, unit: Unit) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{count} {unit if count != 1 else unit.removesuffix('s')}"


def _refusal(differences: Sequence[float], unit: Unit) -> str:
    count = len(differences)
    if count < FEWEST[unit]:
        return f"{counted(count, unit)}, at least {FEWEST[unit]} are needed"
    if unit == "items" and not any(differences) and count < FEWEST_ALIKE:
        return f"alike on all {count} items, {FEWEST_ALIKE} would show that fewer than 1 in 20 differ"
    if unit == "items":
        needed = math.ceil(SKEWNESS_BOUND * skewness(differences) ** 2)
        if count < needed:
            return f"the differences of the {count} items are lopsided: about {needed} are needed"
    return ""


def compare_runs(metric: Metric, a: Mapping[int, float], b: Mapping[int, float], unit: Unit) -> Estimate | None:
    """One arm in two runs: b against a, paired where units are the same items or seeds, else by Welch's interval."""
    if not a or not b:
        return None
    if unit != "rounds":
        return compare(metric, b, a, unit)
    if metric.relative and min(*a.values(), *b.values()) <= 0:
        return Estimate(centre(metric, b.values()), None, None, None, len(b), "a ratio to zero")
    forward: Callable[[float], float] = math.log if metric.relative else float
    back: Callable[[float], float] = math.exp if metric.relative else float
    x, y = [forward(v) for v in a.values()], [forward(v) for v in b.values()]
    mean, value, fewest = fmean(y) - fmean(x), centre(metric, b.values()), min(len(x), len(y))
    if fewest < 2:
        return Estimate(value, back(mean), None, None, fewest, "one unit has no interval")
    u, v = variance(x) / len(x), variance(y) / len(y)
    rounds = counted(fewest, "rounds")
    refusal = f"{rounds}, at least {FEWEST['rounds']} are needed" if fewest < FEWEST["rounds"] else ""
    if u + v == 0:
        return Estimate(value, back(mean), back(mean), back(mean), fewest, spread=0.0, refusal=refusal)
    degrees = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    error = math.sqrt(u + v)
    half = t_quantile(degrees) * error
    return Estimate(
        value,
        back(mean),
        back(mean - half),
        back(mean + half),
        fewest,
        spread=error * math.sqrt(fewest),
        p=t_tail_of(mean / error, degrees),
        refusal=refusal,
    )


def centre(metric: Metric, values: Iterable[float]) -> float:
    """One figure for an arm: the mean over items and seeds, the median over processes."""
    return fmean(list(values)) if metric.axis == "quality" else statistics.median(values)


def fmean(values: Sequence[float]) -> float:
    """Arithmetic mean, rounded once."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Of a sample, over one less than its size: `statistics.variance` in floats, which is ten times as fast."""
    mean = fmean(values)
    return math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1)


def skewness(values: Sequence[float]) -> float:
    """Third central moment over the cubed standard deviation; 0 where all values are alike."""
    mean = fmean(values)
    second = fmean([(value - mean) ** 2 for value in values])
    third = fmean([(value - mean) ** 3 for value in values])
    return third / second**1.5 if second > 0 else 0.0


@functools.cache
def t_quantile(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def half_width(spread: float, units: int, confidence: float = CONFIDENCE) -> float:
    """Half the interval of a mean over so many units."""
    return t_quantile(units - 1, confidence) * spread / math.sqrt(units)


def half_interval(values: Sequence[float]) -> float | None:
    """Half the interval of the mean of some units' figures; None under two."""
    return half_width(math.sqrt(variance(values)), len(values)) if len(values) > 1 else None


def t_tail(mean: float, spread: float, units: int) -> float:
    """Two-sided p-value of a mean against zero."""
    if spread == 0:
        return 0.0 if mean else 1.0
    return t_tail_of(mean * math.sqrt(units) / spread, units - 1)


def t_tail_of(t: float, degrees: float) -> float:
    """Two-sided tail of Student's t."""
    from scipy.special import stdtr

    return float(2 * stdtr(degrees, -abs(t)))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value that items change both ways equally often: the score test (McNemar 1947)."""
    if gained + lost == 0:
        return 1.0
    return math.erfc(abs(gained - lost) / math.sqrt(2 * (gained + lost)))


def score_interval(gained: float, lost: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the difference of two paired shares: all that the score test does not reject (Tango 1998).

    Args:
        gained: items that only the arm got right.
        lost: items that only the baseline got right.
        count: all items.
    """
    bound = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)

    def score(delta: float) -> float:
        # share of lost items that is most likely where the shares differ by delta
        b = -gained - lost + (2 * count - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
        variance = count * (2 * share + delta * (1 - delta))
        distance = gained - lost - count * delta
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    estimate = (gained - lost) / count
    return _crossing(score, -1.0, estimate, bound), _crossing(score, 1.0, estimate, -bound)


def _crossing(score: Callable[[float], float], outside: float, inside: float, bound: float) -> float:
    """Where a falling function passes `bound`, by bisection between a point beyond it and one within."""
    for _ in range(50):
        middle = (outside + inside) / 2
        if abs(score(middle)) <= abs(bound):
            inside = middle
        else:
            outside = middle
    return inside


def holm(p_values: Mapping[K, float], alpha: float = 1 - CONFIDENCE) -> set[K]:
    """The hypotheses rejected by Holm's step-down rule: at most `alpha` to reject any true one (Holm 1979)."""
    rejected: set[K] = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        if p_values[name] > alpha / (len(ordered) - place):
            break
        rejected.add(name)
    return rejected
