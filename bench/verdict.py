"""The only judgements: what an arm's figure says against its baseline's.

SAME is looked for first: the whole interval lies within the metric's margin. BETTER and WORSE exclude no difference,
after Holm's correction over the arms of a report. Anything else is INCONCLUSIVE, with the number of units that would
settle it. A metric declared exact is judged by its margin alone.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from bench import stats
from bench.metrics import Metric
from bench.stats import K

MOST_UNITS = 1000
"""Beyond it a difference is not worth looking for."""


class Verdict(StrEnum):
    BETTER = "BETTER"
    WORSE = "WORSE"
    SAME = "SAME"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on."""

    verdict: Verdict
    reason: str


def judge_all(metric: Metric, estimates: Mapping[K, stats.Estimate]) -> dict[K, Judgement]:
    """Judge all arms of a report on one metric; an arm without a change has no judgement.

    Args:
        estimates: name of the arm -> its estimate.
    """
    compared = {name: e for name, e in estimates.items() if e.change is not None}
    tested = {name: e.p for name, e in compared.items() if e.p is not None and not e.refusal and not _exact(metric, e)}
    alpha = min((1 - compared[name].confidence for name in tested), default=0.0)
    different = stats.holm(tested, alpha)
    return {name: _judge(metric, estimate, name in different) for name, estimate in compared.items()}


def _judge(metric: Metric, estimate: stats.Estimate, different: bool) -> Judgement:
    assert estimate.change is not None
    if _exact(metric, estimate):
        verdict = Verdict.SAME if _within(metric, estimate.change) else _direction(metric, estimate.change)
        return Judgement(verdict, "exact")
    if estimate.refusal:
        return Judgement(Verdict.INCONCLUSIVE, estimate.refusal)
    if estimate.low is None or estimate.high is None:
        return Judgement(Verdict.INCONCLUSIVE, estimate.reason)
    if metric.axis == "latency" and estimate.spread == 0:
        return Judgement(Verdict.INCONCLUSIVE, "all times alike to the last digit: the clock is suspicious")
    if _within(metric, estimate.low) and _within(metric, estimate.high):
        alike = estimate.unit == "items" and estimate.spread == 0 and not estimate.change and estimate.differing is None
        return Judgement(Verdict.SAME, f"alike on all {_units(estimate)}" if alike else f"within {_margin(metric)}")
    if different and estimate.differing is not None and estimate.differing < stats.FEWEST_DIFFERING:
        return Judgement(Verdict.INCONCLUSIVE, f"only {estimate.differing} of {_units(estimate)} differ")
    if different:
        nearest = min((estimate.low, estimate.high), key=lambda bound: abs(_distance(metric, bound)))
        return Judgement(_direction(metric, estimate.change), f"at least {_form(metric, nearest)}")
    return Judgement(Verdict.INCONCLUSIVE, _needed(metric, estimate))


def _exact(metric: Metric, estimate: stats.Estimate) -> bool:
    """Whether the metric is declared the same in every repeat, and was."""
    return metric.exact and not estimate.spread


def _distance(metric: Metric, change: float) -> float:
    """How far from no difference, on the scale that is averaged on."""
    return math.log(change) if metric.relative else change


def _limit(metric: Metric) -> float:
    return math.log1p(metric.margin) if metric.relative else metric.margin


def _within(metric: Metric, change: float) -> bool:
    return abs(_distance(metric, change)) <= _limit(metric)


def _direction(metric: Metric, change: float) -> Verdict:
    lower = _distance(metric, change) < 0
    return Verdict.BETTER if lower == (metric.better == "lower") else Verdict.WORSE


def _form(metric: Metric, change: float) -> str:
    return f"x{change:.3f}" if metric.relative else f"{change:+.3f}"


def _margin(metric: Metric) -> str:
    return f"{metric.margin:.0%}" if metric.relative else f"{metric.margin:g} {metric.unit}"


def _units(estimate: stats.Estimate) -> str:
    return stats.counted(estimate.units, estimate.unit)


def _needed(metric: Metric, estimate: stats.Estimate) -> str:
    """How fine the interval is, and how many units would decide if mean and spread stay as they are."""
    assert estimate.low is not None
    assert estimate.high is not None
    half = (_distance(metric, estimate.high) - _distance(metric, estimate.low)) / 2
    fine = f"+/-{math.expm1(half):.1%}" if metric.relative else f"+/-{half:.3f}"
    seen = f"known to {fine} from {_units(estimate)}"
    if not _would_settle(metric, estimate, MOST_UNITS):
        return f"{seen}, more than {MOST_UNITS} would be needed"
    would = partial(_would_settle, metric, estimate)
    enough = bisect.bisect_left(range(MOST_UNITS), True, estimate.units + 1, key=would)
    return f"{seen}, about {enough} would settle it"


def _would_settle(metric: Metric, estimate: stats.Estimate, units: int) -> bool:
    assert estimate.change is not None
    assert estimate.spread is not None
    mean = _distance(metric, estimate.change)
    if estimate.differing is None:
        half = stats.half_width(estimate.spread, units, estimate.confidence)
        low, high = mean - half, mean + half
    else:
        differing, net = (value * units / estimate.units for value in (estimate.differing, mean * estimate.units))
        low, high = stats.score_interval((differing + net) / 2, (differing - net) / 2, units, estimate.confidence)
    return low > 0 or high < 0 or max(-low, high) <= _limit(metric)
