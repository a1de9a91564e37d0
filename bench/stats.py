"""The only statistics: from raw samples to one number per unit, and from units to an interval.

The unit is the process (time, memory), the item (quality of a given model) or the seed (a trained model), never the
step inside one process. Intervals are paired t-intervals, on log-ratios where a metric is compared as a ratio.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.metrics import Metric

CONFIDENCE = 0.95
FEWEST = 5
"""Units under which nothing is judged."""


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
    spread: float | None = None
    """Standard deviation of the units' differences, on the scale they are averaged on."""
    p: float | None = None
    """Two-sided probability of a change this large where there is none."""


def prompt_times(samples: Mapping[str, Any]) -> Iterable[tuple[float, float, int]]:
    """Per prompt of a burst: prefill [s], the rest [s], tokens emitted by the rest."""
    prefill, rest, tokens, open_prompt = 0.0, 0.0, 0, False
    for kind, seconds, emitted in zip(samples["kind"], samples["seconds"], samples["tokens"], strict=True):
        if kind == "prefill":
            if open_prompt:
                yield prefill, rest, tokens
            prefill, rest, tokens, open_prompt = seconds, 0.0, 0, True
        elif kind == "decode":
            rest, tokens = rest + seconds, tokens + emitted
    if open_prompt:
        yield prefill, rest, tokens


def _time_units(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        bursts = [burst["samples"] for burst in part["bursts"] if burst["used"]]
        number = part["round"]
        prompts = [times for samples in bursts for times in prompt_times(samples)]
        steps = [
            seconds
            for samples in bursts
            for kind, seconds in zip(samples["kind"], samples["seconds"], strict=True)
            if kind == "train"
        ]
        if prompts:
            units.setdefault("ttft", {})[number] = statistics.median(prefill for prefill, _, _ in prompts)
            rates = [rest / tokens for _, rest, tokens in prompts if tokens]
            if rates:
                units.setdefault("tpot", {})[number] = statistics.median(rates)
        if steps:
            units.setdefault("time_per_step", {})[number] = statistics.median(steps)
        whole = sum(sum(samples["seconds"]) for samples in bursts)
        if whole:
            units.setdefault("throughput", {})[number] = sum(sum(s["tokens"]) for s in bursts) / whole
    return units


def _memory_units(rounds: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    units: dict[str, dict[int, float]] = {}
    for part in rounds:
        memory = part.get("memory")
        if not memory:
            continue
        found = {
            "peak_memory": memory["peak"],
            "reserved_memory": memory["reserved"],
            "held_memory": memory["named"],
            "kv_cache_bytes": memory["largest"].get("kv_cache"),
        }
        for name, value in found.items():
            if value is not None:
                units.setdefault(name, {})[part["round"]] = float(value)
    return units


def units(record: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Metric -> unit -> its number: rounds for time and memory, items for quality."""
    rounds = record["rounds"]
    found = {**_time_units(rounds), **_memory_units(rounds)}
    for name, values in ((record["quality"] or {}).get("metrics") or {}).items():
        found[name] = {index: value for index, value in enumerate(values) if value is not None}
    return found


def compare(metric: Metric, arm: Mapping[int, float], base: Mapping[int, float] | None) -> Estimate | None:
    """An arm's units against the baseline's, paired by unit; None where the arm has none."""
    if not arm:
        return None
    value = centre(metric, arm.values())
    if base is None:
        return Estimate(value, None, None, None, len(arm), "this is the baseline")
    shared = sorted(set(arm) & set(base))
    if not shared:
        return Estimate(value, None, None, None, 0, "the baseline has no such figure")
    if metric.relative:
        if any(arm[unit] <= 0 or base[unit] <= 0 for unit in shared):
            return Estimate(value, None, None, None, len(shared), "a ratio to zero")
        differences = [math.log(arm[unit] / base[unit]) for unit in shared]
    else:
        differences = [arm[unit] - base[unit] for unit in shared]
    back = math.exp if metric.relative else float
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return Estimate(value, back(mean), None, None, len(differences), "one unit has no interval")
    count, spread = len(differences), statistics.stdev(differences)
    half = half_width(spread, count)
    p = t_tail(mean, spread, count)
    return Estimate(value, back(mean), back(mean - half), back(mean + half), count, spread=spread, p=p)


def compare_runs(metric: Metric, a: Mapping[int, float], b: Mapping[int, float], paired: bool) -> Estimate | None:
    """One arm in two runs: b against a, paired where units are the same items, else by Welch's interval."""
    if not a or not b:
        return None
    if paired:
        return compare(metric, b, a)
    if metric.relative and min(*a.values(), *b.values()) <= 0:
        return Estimate(centre(metric, b.values()), None, None, None, len(b), "a ratio to zero")
    forward, back = (math.log, math.exp) if metric.relative else (float, float)
    x, y = [forward(v) for v in a.values()], [forward(v) for v in b.values()]
    mean, value = statistics.fmean(y) - statistics.fmean(x), centre(metric, b.values())
    if min(len(x), len(y)) < 2:
        return Estimate(value, back(mean), None, None, min(len(x), len(y)), "one unit has no interval")
    u, v = statistics.variance(x) / len(x), statistics.variance(y) / len(y)
    if u + v == 0:
        return Estimate(value, back(mean), back(mean), back(mean), len(y))
    degrees = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    half = t_quantile(degrees) * math.sqrt(u + v)
    return Estimate(value, back(mean), back(mean - half), back(mean + half), min(len(x), len(y)))


def centre(metric: Metric, values: Iterable[float]) -> float:
    """One figure for an arm: the mean over items, the median over processes."""
    return statistics.fmean(values) if metric.axis == "quality" else statistics.median(values)


def t_quantile(degrees: float, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def half_width(spread: float, units: int) -> float:
    """Half the interval of a mean over so many units."""
    return t_quantile(units - 1) * spread / math.sqrt(units)


def t_tail(mean: float, spread: float, units: int) -> float:
    """Two-sided p-value of a mean against zero."""
    from scipy.special import stdtr

    if spread == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(units - 1, -abs(mean) * math.sqrt(units) / spread))


def holm(p_values: Mapping[str, float], alpha: float = 1 - CONFIDENCE) -> set[str]:
    """The hypotheses rejected by Holm's step-down rule: at most `alpha` to reject any true one (Holm 1979)."""
    rejected: set[str] = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        if p_values[name] > alpha / (len(ordered) - place):
            break
        rejected.add(name)
    return rejected
