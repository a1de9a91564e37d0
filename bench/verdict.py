"""The only judgements: what an arm's figure says against its baseline's.

SAME is looked for first: the whole interval lies within the metric's margin. BETTER and WORSE exclude no difference,
after Holm's correction over the arms of a report. Anything else is INCONCLUSIVE, with the number of units that would
settle it. A metric declared exact is judged by its margin alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from bench import stats
from bench.metrics import Metric

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


def judge_all(metric: Metric, estimates: Mapping[str, stats.Estimate]) -> dict[str, Judgement]:
    """Judge all arms of a report on one metric; an arm without a change has no judgement.

    Args:
        estimates: name of the arm -> its estimate.
    """
    compared = {name: e for name, e in estimates.items() if e.change is not None}
    tested = {
        name: e.p for name, e in compared.items() if not metric.exact and e.p is not None and e.units >= stats.FEWEST
    }
    different = stats.holm(tested)
    return {name: _judge(metric, estimate, name in different) for name, estimate in compared.items()}


def _judge(metric: Metric, estimate: stats.Estimate, different: bool) -> Judgement:
    assert estimate.change is not None
    if metric.exact:
        verdict = Verdict.SAME if _within(metric, estimate.change) else _direction(metric, estimate.change)
        return Judgement(verdict, "exact")
    if estimate.units < stats.FEWEST or estimate.low is None or estimate.high is None:
        return Judgement(Verdict.INCONCLUSIVE, f"{estimate.units} {_units(metric)}, at least {stats.FEWEST} are needed")
    if metric.axis == "latency" and estimate.spread == 0:
        return Judgement(Verdict.INCONCLUSIVE, "all times alike to the last digit: the clock is suspicious")
    if _within(metric, estimate.low) and _within(metric, estimate.high):
        return Judgement(Verdict.SAME, f"within {_margin(metric)}")
    if different:
        nearest = min((estimate.low, estimate.high), key=lambda bound: abs(_distance(metric, bound)))
        return Judgement(_direction(metric, estimate.change), f"at least {_form(metric, nearest)}")
    return Judgement(Verdict.INCONCLUSIVE, _needed(metric, estimate))


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


def _units(metric: Metric) -> str:
    return "items" if metric.axis == "quality" else "rounds"


def _needed(metric: Metric, estimate: stats.Estimate) -> str:
    """How many units would decide, if mean and spread stay as they are."""
    assert estimate.change is not None
    assert estimate.spread is not None
    mean = abs(_distance(metric, estimate.change))
    reach = max(mean, _limit(metric) - mean)
    for units in range(estimate.units + 1, MOST_UNITS + 1):
        if stats.half_width(estimate.spread, units) < reach:
            return f"about {units} {_units(metric)} would settle it, {estimate.units} were measured"
    return f"more than {MOST_UNITS} {_units(metric)} would be needed, {estimate.units} were measured"
